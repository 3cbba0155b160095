//! Guest RAM must be a file that QEMU and the data plane share.

use super::arguments::values;

/// Memory backend arguments to add: none when the user's own will do.
///
/// An error names the argument to change.
pub(super) fn arguments(given: &[String], ram_file: &str) -> Result<Vec<String>, String> {
    let mut has_backend = false;
    for object in values(given, &["object"]) {
        has_backend |= check_object(object)?;
    }
    if has_backend {
        return Ok(Vec::new());
    }
    if let Some(path) = values(given, &["mem-path"]).next() {
        return Err(format!(
            "-mem-path {path} makes private memory: remove it and give --mem-path {path} to dwcp"
        ));
    }
    if ram_file.contains(',') {
        return Err(format!(
            "{ram_file}: QEMU takes no comma in a path; give another --mem-path"
        ));
    }
    let size = match values(given, &["m"]).last() {
        Some(text) => ram_bytes(text).ok_or_else(|| format!("-m {text}: not a size"))?,
        None => DEFAULT_BYTES,
    };
    let object =
        format!("memory-backend-file,id=dwcp-ram,size={size},mem-path={ram_file},share=on");
    let words = ["-object", &object, "-machine", "memory-backend=dwcp-ram"];
    Ok(words.map(str::to_owned).to_vec())
}

/// What QEMU takes without -m.
const DEFAULT_BYTES: u64 = 128 << 20;

/// Whether the object is a memory backend; an error when it is one that cannot be shared.
fn check_object(object: &str) -> Result<bool, String> {
    let compact: String = object.chars().filter(|c| !c.is_whitespace()).collect();
    let is = |kind: &str| object.starts_with(kind) || compact.contains(&format!(":\"{kind}\""));
    for private in ["memory-backend-memfd", "memory-backend-ram"] {
        if is(private) {
            return Err(format!(
                "change {private} to memory-backend-file,…,mem-path=/dev/shm/NAME,share=on, or \
                 remove it and let dwcp add one: only a file can be opened by the data plane"
            ));
        }
    }
    if !is("memory-backend-file") {
        return Ok(false);
    }
    let shared = object
        .split(',')
        .any(|part| matches!(part, "share=on" | "share=yes" | "share=true"))
        || compact.contains("\"share\":true")
        || compact.contains("\"share\":\"on\"");
    if shared {
        return Ok(true);
    }
    Err(format!(
        "add share=on to -object {object}: private memory cannot be moved beside QEMU"
    ))
}

/// Bytes of `-m`'s value: `512` (MiB), `4G`, `size=4G,slots=2,maxmem=8G`.
fn ram_bytes(text: &str) -> Option<u64> {
    let first = text.split(',').next()?;
    let named = text.split(',').find_map(|part| part.strip_prefix("size="));
    let size = named.unwrap_or(first);
    let digits = size.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = size.get(..digits)?.parse().ok()?;
    let factor: u64 = match size.get(digits..)? {
        "" | "M" | "m" => 1 << 20,
        "b" | "B" => 1,
        "K" | "k" => 1 << 10,
        "G" | "g" => 1 << 30,
        "T" | "t" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(factor).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_qemu_reads_them() {
        assert_eq!(ram_bytes("512"), Some(512 << 20));
        assert_eq!(ram_bytes("4G"), Some(4 << 30));
        assert_eq!(ram_bytes("size=2G,slots=2,maxmem=8G"), Some(2 << 30));
        assert_eq!(ram_bytes("1024k"), Some(1 << 20));
        for wrong in ["", "G", "0", "12X", "99999999999999T", "-1"] {
            assert_eq!(ram_bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_shared_file_of_the_users_is_left_alone() {
        for object in [
            "memory-backend-file,id=m,size=1G,mem-path=/dev/shm/x,share=on",
            r#"{"qom-type": "memory-backend-file", "id": "m", "share": true}"#,
        ] {
            let given = ["-object".to_owned(), object.to_owned()];
            assert_eq!(arguments(&given, "/dev/shm/ram"), Ok(Vec::new()));
        }
        let memfd = r#"{"qom-type": "memory-backend-memfd", "id": "m"}"#;
        assert!(arguments(&["-object".to_owned(), memfd.to_owned()], "/r").is_err());
    }
}
