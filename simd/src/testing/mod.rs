//! One corpus, one naive oracle, one runner: every instruction set answers the same questions.

mod corpus;
mod naive;
mod prop;
mod runner;
