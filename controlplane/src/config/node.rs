//! The node's own file, usually `/etc/dwcp/node.toml`.

use std::path::{Path, PathBuf};

use super::error::{ConfigErrors, Source};
use super::schema::{Key, Kind, Reload, Value, Values};

/// The state folder when nothing else is said.
pub const STATE_FOLDER: &str = "/var/lib/dwcp";

const KEYS: &[Key] = &[
    Key {
        name: "node.name",
        kind: Kind::Name,
        reload: Reload::Restart,
        doc: "What the node calls itself. Unique among its peers: it stands in handover records. \
              Without it the host name is taken.",
    },
    Key {
        name: "node.state_folder",
        kind: Kind::Text("path"),
        reload: Reload::Restart,
        doc: "Folder of what must survive a restart: node id, attached VMs, handover journal. Both \
              daemons use the same one. A local disk, not memory: the journal is what keeps a VM \
              from running twice.",
    },
    Key {
        name: "node.socket",
        kind: Kind::Text("path"),
        reload: Reload::Restart,
        doc: "Unix socket where the control plane serves the dwcp command. Without it \
              `node.sock` in the state folder.",
    },
    Key {
        name: "node.dataplane_socket",
        kind: Kind::Text("path"),
        reload: Reload::Restart,
        doc: "Unix socket of the data plane of this node. Without it `dataplane.sock` in the state \
              folder.",
    },
    Key {
        name: "node.default_profile",
        kind: Kind::Text("profile name or path"),
        reload: Reload::Signal,
        doc: "Profile of migrations that name none: datacenter, hybrid, internet, or the path of a \
              profile file.",
    },
    Key {
        name: "peers",
        kind: Kind::Peers,
        reload: Reload::Signal,
        doc: "Other nodes by name, with host:port of their data planes. `dwcp migrate --to NAME` \
              looks here.",
    },
];

/// Every key of a node's file.
#[must_use]
pub const fn keys() -> &'static [Key] {
    KEYS
}

/// A node's file, read. `None` where the file says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeConfig {
    /// `node.name`.
    pub name: Option<String>,
    /// `node.state_folder`.
    pub state_folder: Option<PathBuf>,
    /// `node.socket`.
    pub socket: Option<PathBuf>,
    /// `node.dataplane_socket`.
    pub dataplane_socket: Option<PathBuf>,
    /// `node.default_profile`.
    pub default_profile: Option<String>,
    /// `peers`.
    pub peers: Vec<(String, String)>,
}

impl NodeConfig {
    /// Reads text that came from a file called `name`.
    ///
    /// # Errors
    /// All faults, with their places.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigErrors> {
        let mut values = super::parse(Source { name, text }, KEYS)?;
        Ok(Self {
            name: text_of(&mut values, "node.name"),
            state_folder: text_of(&mut values, "node.state_folder").map(Into::into),
            socket: text_of(&mut values, "node.socket").map(Into::into),
            dataplane_socket: text_of(&mut values, "node.dataplane_socket").map(Into::into),
            default_profile: text_of(&mut values, "node.default_profile"),
            peers: match values.remove("peers") {
                Some(Value::Peers(peers)) => peers,
                _ => Vec::new(),
            },
        })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// That it cannot be read, or all its faults.
    pub fn load(path: &Path) -> Result<Self, miette::Report> {
        let text = super::read(path)
            .map_err(|error| miette::miette!(help = error.hint, "{}", error.message))?;
        Ok(Self::parse(&path.to_string_lossy(), &text)?)
    }
}

fn text_of(values: &mut Values, key: &str) -> Option<String> {
    match values.remove(key) {
        Some(Value::Text(text)) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_file_is_read() {
        let text = "[node]\nname = \"a\"\nstate_folder = \"/srv/a\"\n\
                    [peers]\nb = \"192.0.2.2:7440\"\nc = \"[2001:db8::1]:7400\"\n";
        let config = NodeConfig::parse("node.toml", text).unwrap();
        assert_eq!(config.name.as_deref(), Some("a"));
        assert_eq!(config.state_folder.as_deref(), Some(Path::new("/srv/a")));
        assert_eq!(config.peers.len(), 2);
    }

    #[test]
    fn a_node_and_its_peers_have_names_that_can_be_written_anywhere() {
        let text = "[node]\nname = \"\"\n[peers]\n\"b/../c\" = \"192.0.2.2:7440\"\n";
        let errors = NodeConfig::parse("node.toml", text).unwrap_err();
        let lines: Vec<_> = errors.faults.iter().map(|fault| fault.line()).collect();
        assert_eq!(lines, [2, 4], "{errors:?}");
        for fault in &errors.faults {
            assert!(fault.message.contains("cannot name a node"), "{fault}");
            assert_eq!(fault.hint.as_deref(), Some(dwcp_api::NAME_RULE));
        }
    }

    #[test]
    fn what_was_written_instead_is_named_with_its_article() {
        let faults = |text| {
            NodeConfig::parse("node.toml", text)
                .unwrap_err()
                .to_string()
        };
        let text = "[node]\nsocket = 7\n";
        let errors = NodeConfig::parse("node.toml", text).unwrap_err();
        assert_eq!(errors.faults[0].message, "`node.socket` takes a path");
        assert_eq!(errors.faults[0].label(), "this is an integer");
        assert!(faults("[node]\nname = [1]\n").contains("takes a name"));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_said_to_be_so() {
        let dir = tempfile::tempdir().unwrap();
        for (path, says) in [
            (dir.path().join("no.toml"), "no.toml: there is no such file"),
            (dir.path().to_owned(), "is a folder, not a file"),
        ] {
            let report = NodeConfig::load(&path).unwrap_err();
            assert!(report.to_string().contains(says), "{report}");
            assert!(report.help().is_some());
        }
    }

    #[test]
    fn faults_name_line_column_and_what_was_meant() {
        let text = "[node]\nnmae = \"a\"\n[peers]\nb = \"192.0.2.2\"\n";
        let errors = NodeConfig::parse("node.toml", text).unwrap_err();
        let [unknown, address] = &errors.faults[..] else {
            panic!("{errors:?}");
        };
        assert_eq!(
            (unknown.line(), unknown.column(), unknown.text()),
            (2, 1, "nmae")
        );
        assert_eq!(unknown.hint.as_deref(), Some("did you mean `node.name`?"));
        assert_eq!((address.line(), address.column()), (4, 5));
        assert!(
            errors.to_string().starts_with("node.toml:2:1: unknown key"),
            "{errors}"
        );
    }
}
