//! Benches of the page path, one per stage, and records of their runs. The code is in `benches/`.
