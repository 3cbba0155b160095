//! The control plane of a node: it knows the VMs, the peers and the profiles, starts migrations,
//! and answers the command line. It never touches a page: the data plane does, and keeps a
//! migration going when this process is gone.
//!
//! | room | door | what it does |
//! |---|---|---|
//! | [`config`] | [`config::NodeConfig`], [`config::Key`] | files with faults that name line and column |
//! | [`profile`] | [`profile::load`], [`profile::with_changes`] | profiles to transfer settings |
//! | [`dataplane`] | [`dataplane::Client`] | the connection to the other daemon, made again when lost |
//! | [`vms`] | [`vms::Vms`] | attached VMs, also after a restart of either daemon |
//! | [`migrations`] | [`migrations::Migrations`] | start, cancel, status |
//! | [`mode`] | [`mode::Detector`] | what kind of path it is, by what TCP sees |
//! | [`ledger`] | [`ledger::Ledger`] | who owns what, by the handover journal |
//! | [`api`] | [`api::Server`] | the socket that the `dwcp` command talks to |
//! | [`node`] | [`node::Node`] | all of them together |
#![forbid(unsafe_code)]

pub mod api;
pub mod config;
pub mod dataplane;
pub mod ledger;
pub mod migrations;
pub mod mode;
pub mod node;
pub mod profile;
pub mod vms;

mod folder;

pub use config::is_address;
pub use folder::FolderError;
