//! `dwcp bench`: the bundled load tools. Each prints a table, or a JSON record with the machine
//! described.

mod codec;
mod cuts;
mod draws;
mod fault_matrix;
mod faults;
mod forecast;
mod goodput;
mod idle;
mod machine;
mod matrix;
mod numbers;
mod parts;
mod peers;
mod postcopy;
mod rdma;
mod report;
mod run;
mod scale;
mod soak;
mod stat;
mod strategy;
mod tls;
mod wan;
mod whereabouts;
mod wire;

use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "\
Each starts what it needs, and leaves nothing behind. Its own help says what it measures and needs.

Examples:
  dwcp bench peers
  dwcp bench wan --link 100mbit,100ms --rounds 3 --json > wan.json
  dwcp bench faults --points 200
  dwcp bench report wan.json";

/// `dwcp bench`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    #[command(subcommand)]
    which: Which,
}

#[derive(clap::Subcommand, Debug)]
enum Which {
    /// Move one Linux guest by DWCP and by QEMU's own migration, in turn.
    Peers(peers::Args),
    /// Move memory by raw movers, the limit of the machine, and by a whole migration beside them.
    Wire(wire::Args),
    /// Measure the parts of the hot path, each beside what it replaces.
    Parts(parts::Args),
    /// Try every codec effort on a guest's RAM, and the chooser between them, over computed links.
    Codec(codec::Args),
    /// Let RAM, streams, the dirty rate or the number of migrations grow.
    Scale(scale::Args),
    /// Move one guest back and forth, thousands of times: the daemons must not grow.
    Soak(soak::Args),
    /// Every guest with every RAM over every link: 330 scenarios, those that fit run for real.
    Matrix(Box<matrix::Args>),
    /// Move a guest over slow, long and lossy links, there and back, beside QEMU's own migration.
    Wan(wan::Args),
    /// Move the same guest with TLS off and on, in turn, over a link of 900 Mbit/s.
    Tls(tls::Args),
    /// Move a guest that does not compress over links of 100 to 900 Mbit/s: what part of the rate is used.
    Goodput(goodput::Args),
    /// Run a guest at the destination before its pages are there, and lose the link or a data plane meanwhile.
    Postcopy(postcopy::Args),
    /// Move guests that converge and guests that do not: what was foretold beside what came.
    Forecast(forecast::Args),
    /// Move a guest that outruns its link by each strategy that there is for it.
    Strategy(strategy::Args),
    /// Move a guest over TCP and over RDMA, in turn, beside what the adapter can do.
    Rdma(rdma::Args),
    /// Leave a node alone, and see what its daemons cost.
    Idle(idle::Args),
    /// Show a record as a table and a page with plots, or compare two.
    Report(report::Args),
    /// Cut the link or restart a data plane at seeded moments; the migration must end well.
    Cuts(cuts::Args),
    /// Kill daemons and VMMs at seeded moments; the guest must run on exactly one side.
    Faults(faults::Args),
    /// Every fault in every phase of both kinds of migration, by seeds; the guest must run on exactly one side.
    FaultMatrix(fault_matrix::Args),
}

impl Args {
    /// Whether it takes care of signals itself.
    pub(crate) const fn ends_by_itself(&self) -> bool {
        matches!(self.which, Which::FaultMatrix(_))
    }
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    match &args.which {
        Which::Peers(args) => peers::run(args, context),
        Which::Wire(args) => wire::run(args, context),
        Which::Parts(args) => parts::run(args, context),
        Which::Codec(args) => codec::run(args, context),
        Which::Scale(args) => scale::run(args, context),
        Which::Soak(args) => soak::run(args, context),
        Which::Matrix(args) => matrix::run(args, context),
        Which::Wan(args) => wan::run(args, context),
        Which::Tls(args) => tls::run(args, context),
        Which::Goodput(args) => goodput::run(args, context),
        Which::Postcopy(args) => postcopy::run(args, context),
        Which::Forecast(args) => forecast::run(args, context),
        Which::Strategy(args) => strategy::run(args, context),
        Which::Rdma(args) => rdma::run(args, context),
        Which::Idle(args) => idle::run(args, context),
        Which::Report(args) => report::run(args, context),
        Which::Cuts(args) => cuts::run(args, context),
        Which::Faults(args) => faults::run(args, context),
        Which::FaultMatrix(args) => fault_matrix::run(args, context),
    }
}
