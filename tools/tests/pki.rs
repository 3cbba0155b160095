//! `dwcp pki`: a private CA from its beginning to its renewal, and what is said of a folder that is not as it should be.

#[path = "../../controlplane/tests/fake/mod.rs"]
mod fake;
mod local;

use local::{dwcp, json, run};

/// Keys are made, kept, renewed; each refusal has its exit code.
#[test]
fn a_private_ca_from_the_beginning_to_its_renewal() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("pki");
    let folder = folder.to_str().unwrap();
    run(dwcp().args(["pki", "init", folder, "--name", "test"]), 0);
    run(dwcp().args(["pki", "init", folder]), 2);
    let issue = ["pki", "issue", folder, "node-a", "--address", "192.0.2.1"];
    let (out, _) = run(dwcp().args(issue).arg("--json"), 0);
    let key = json(&out)[0]["files"]["key"].clone();
    let key = std::path::PathBuf::from(key.as_str().unwrap());
    let before = std::fs::read(&key).unwrap();
    let (_, err) = run(dwcp().args(issue), 2);
    assert!(err.contains("--force"), "{err}");
    run(dwcp().args(["pki", "issue", folder, "no node"]), 2);
    run(dwcp().args(["pki", "rotate", folder, "node-b"]), 3);
    run(dwcp().args(["pki", "rotate", folder, "node-a"]), 0);
    assert_ne!(std::fs::read(&key).unwrap(), before);
    run(dwcp().args(["pki", "rotate", folder, "--ca"]), 0);
    let (_, err) = run(dwcp().args(["pki", "rotate", folder, "--drop-old"]), 2);
    assert!(err.contains("still needed by node-a"), "{err}");
    let (out, _) = run(dwcp().args(["pki", "show", folder, "--json"]), 0);
    let shown = json(&out);
    assert_eq!(shown["trusted"].as_array().unwrap().len(), 2);
    assert_eq!(
        shown["nodes"][0]["certificate"]["addresses"][0],
        "192.0.2.1"
    );
    run(dwcp().args(["pki", "show", "/nowhere/pki"]), 3);
}

/// What is wrong in a CA's folder is said in text and in JSON, with what helps.
#[test]
fn a_private_ca_says_what_is_wrong() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let allow = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    allow(folder.path(), 0o777);
    let text = folder.path().to_str().unwrap();
    let (_, err) = run(dwcp().args(["pki", "init", text]), 0);
    assert!(
        err.contains("warning: ") && err.contains("chmod go-w"),
        "{err}"
    );
    allow(folder.path(), 0o700);
    allow(&folder.path().join("ca-key.pem"), 0o644);
    let (out, err) = run(dwcp().args(["pki", "issue", text, "a", "--json"]), 0);
    assert!(err.contains("chmod 600"), "{err}");
    assert!(
        json(&out)[0]["warnings"][0]
            .as_str()
            .unwrap()
            .contains("chmod 600"),
        "{out}"
    );
    run(dwcp().args(["pki", "rotate", text, "--ca"]), 0);
    run(dwcp().args(["pki", "rotate", text, "--ca"]), 0);
    let (out, err) = run(dwcp().args(["pki", "show", text, "--json"]), 0);
    assert_eq!(err, "");
    assert_eq!(json(&out)["nodes"][0]["is_trusted"], true);
    let (out, err) = run(dwcp().args(["pki", "init", text, "--force"]), 0);
    assert!(out.contains("NOT TRUSTED"), "{out}");
    assert!(
        err.contains(&format!("`dwcp pki rotate {text} a`")),
        "{err}"
    );
    let (out, _) = run(dwcp().args(["pki", "show", text, "--json"]), 0);
    assert_eq!(json(&out)["nodes"][0]["is_trusted"], false);
    for bad in ["", "bad name", "a\nb"] {
        run(dwcp().args(["pki", "issue", text, "b", "--dns", bad]), 2);
    }
    run(dwcp().args(["pki", "issue", text, "A"]), 2);
    run(
        dwcp().args(["pki", "init", text, "--force", "--name", "a\nb"]),
        2,
    );
}
