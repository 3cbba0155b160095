//! From the user's QEMU arguments to those of a QEMU that can be moved. Pure.

use super::UFFD_ENV;
use super::memory;

/// What is added.
#[derive(Clone, Debug)]
pub(super) struct Added {
    pub(super) qmp_socket: String,
    pub(super) uffd_socket: Option<String>,
    pub(super) ram_file: String,
    pub(super) preload: Option<String>,
    pub(super) incoming: bool,
    /// Program when the arguments name none.
    pub(super) default_program: Option<String>,
}

/// A command to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) program: String,
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<(String, String)>,
    /// Guest RAM in [`Added::ram_file`] was added.
    pub(super) adds_ram: bool,
}

/// Value of an option, `-name value` or `--name value`.
pub(super) fn values<'a>(
    arguments: &'a [String],
    names: &'a [&str],
) -> impl Iterator<Item = &'a str> {
    arguments
        .windows(2)
        .filter(|pair| is_option(&pair[0], names))
        .map(|pair| pair[1].as_str())
}

fn is_option(argument: &str, names: &[&str]) -> bool {
    let bare = argument
        .strip_prefix("--")
        .or_else(|| argument.strip_prefix('-'));
    bare.is_some_and(|bare| names.contains(&bare))
}

/// The command, or which argument to change.
pub(super) fn plan(given: &[String], added: &Added) -> Result<Plan, String> {
    let (program, given) = match given.split_first() {
        Some((first, rest)) if !first.starts_with('-') => (Some(first.clone()), rest),
        _ => (None, given),
    };
    let program = program
        .or_else(|| added.default_program.clone())
        .unwrap_or_else(|| "qemu-system-x86_64".to_owned());
    let has = |name: &str| given.iter().any(|argument| is_option(argument, &[name]));
    if has("daemonize") {
        return Err(
            "remove -daemonize: the forked QEMU would lose its userfaultfd, and dwcp stays its \
             parent anyway"
                .to_owned(),
        );
    }
    if has("incoming") {
        return Err(
            "remove -incoming from QEMU's arguments and give --incoming to dwcp".to_owned(),
        );
    }
    for socket in [Some(&added.qmp_socket), added.uffd_socket.as_ref()]
        .into_iter()
        .flatten()
    {
        if socket.len() > 107 {
            return Err(format!(
                "{socket}: too long for a socket; give a shorter --run-folder"
            ));
        }
        if socket.contains(',') {
            return Err(format!(
                "{socket}: QEMU takes no comma in a path; give --run-folder"
            ));
        }
    }
    let mut arguments = given.to_vec();
    let memory = memory::arguments(given, &added.ram_file)?;
    let adds_ram = !memory.is_empty();
    arguments.extend(memory);
    let qmp = format!("unix:{},server=on,wait=off", added.qmp_socket);
    arguments.extend(["-qmp".to_owned(), qmp]);
    if added.incoming {
        arguments.extend(["-incoming", "defer", "-S"].map(str::to_owned));
    }
    let mut environment = Vec::new();
    if let (Some(library), Some(socket)) = (&added.preload, &added.uffd_socket) {
        environment.push(("LD_PRELOAD".to_owned(), library.clone()));
        environment.push((UFFD_ENV.to_owned(), socket.clone()));
    }
    Ok(Plan {
        program,
        arguments,
        environment,
        adds_ram,
    })
}

impl Plan {
    /// The command as a shell takes it.
    pub(super) fn command_line(&self) -> String {
        let environment = self
            .environment
            .iter()
            .map(|(name, value)| format!("{name}={}", quote(value)));
        let words = std::iter::once(&self.program).chain(&self.arguments);
        let words: Vec<_> = environment.chain(words.map(|word| quote(word))).collect();
        words.join(" ")
    }
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn added() -> Added {
        Added {
            qmp_socket: "/run/dwcp/web.qmp".into(),
            uffd_socket: Some("/run/dwcp/web.uffd".into()),
            ram_file: "/dev/shm/dwcp-web-1.ram".into(),
            preload: Some("/usr/lib/libdwcp_preload.so".into()),
            incoming: false,
            default_program: None,
        }
    }

    #[test]
    fn what_a_migration_needs_is_added() {
        let plan = plan(&words("-m 4G -nographic"), &added()).unwrap();
        assert_eq!(
            plan.command_line(),
            "LD_PRELOAD=/usr/lib/libdwcp_preload.so DWCP_UFFD_SOCKET=/run/dwcp/web.uffd \
             qemu-system-x86_64 -m 4G -nographic \
             -object memory-backend-file,id=dwcp-ram,size=4294967296,\
             mem-path=/dev/shm/dwcp-web-1.ram,share=on -machine memory-backend=dwcp-ram \
             -qmp unix:/run/dwcp/web.qmp,server=on,wait=off"
        );
    }

    #[test]
    fn the_destination_waits() {
        let added = Added {
            incoming: true,
            preload: None,
            uffd_socket: None,
            default_program: Some("/opt/qemu".into()),
            ..added()
        };
        let plan = plan(&words("-m 4G"), &added).unwrap();
        assert!(plan.command_line().starts_with("/opt/qemu -m 4G"));
        assert!(plan.command_line().ends_with("-incoming defer -S"));
        assert_eq!(plan.environment, []);
        let named = super::plan(&words("qemu-kvm -m 4G"), &added).unwrap();
        assert_eq!(named.program, "qemu-kvm");
    }

    #[test]
    fn what_cannot_be_moved_is_refused_with_the_argument_to_change() {
        for (text, names) in [
            ("-daemonize", "remove -daemonize"),
            ("--daemonize", "remove -daemonize"),
            ("-incoming tcp:0:4444", "--incoming"),
            (
                "-m 1G -object memory-backend-memfd,id=m,size=1G,share=on",
                "memory-backend-file",
            ),
            (
                "-m 1G -object memory-backend-ram,id=m,size=1G",
                "memory-backend-file",
            ),
            (
                "-m 1G -object memory-backend-file,id=m,size=1G,mem-path=/x,share=off",
                "share=on",
            ),
            (
                "-m 1G -object memory-backend-file,id=m,size=1G,mem-path=/x",
                "share=on",
            ),
            ("-m 1G -mem-path /dev/hugepages", "--mem-path"),
            ("-m many", "-m many"),
        ] {
            let refusal = plan(&words(text), &added()).unwrap_err();
            assert!(refusal.contains(names), "{text}: {refusal}");
        }
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
    }
}
