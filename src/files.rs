//! Files that appear whole or not at all, and their names.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{Error, Result};

/// A name beside the target that no other write has: on the same file system, so that renaming is one step.
pub fn temporary_beside(path: &Path) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    name.push(format!(".{}.{count}.tmp", std::process::id()));
    path.with_file_name(name)
}

/// Writes to a temporary name and renames; what was there before is replaced when everything is on the disk. A link stays
/// one, and a pipe or a device is written to as it is.
///
/// # Errors
/// `Io`; nothing is left behind.
pub fn write_whole(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    if path.metadata().is_ok_and(|of| !of.is_file() && !of.is_dir()) {
        return std::fs::write(path, bytes).map_err(|e| Error::io(path, e));
    }
    let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let temporary = temporary_beside(path);
    let written = std::fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|e| {
        // The failure that matters is the first one.
        let _ = std::fs::remove_file(&temporary);
        Error::io(path, e)
    })
}

/// Which of these endings a name has, in letters of either case.
///
/// # Errors
/// `Usage` for another.
pub fn ending(path: &Path, known: &[&'static str]) -> Result<&'static str> {
    let has = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    known.iter().copied().find(|ending| ending.eq_ignore_ascii_case(has)).ok_or_else(|| {
        let known: Vec<String> = known.iter().map(|ending| format!(".{ending}")).collect();
        let path = path.display();
        Error::Usage(format!("{path}: the name of this file must end in {}", known.join(" or ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.json");
        for text in ["first", "second"] {
            write_whole(&file, text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        }
        #[cfg(unix)]
        {
            let link = folder.path().join("link");
            std::os::unix::fs::symlink(&file, &link).unwrap();
            write_whole(&link, b"third").unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), "third");
            assert!(link.is_symlink());
            std::fs::remove_file(&link).unwrap();
            write_whole("/dev/null", b"nothing").unwrap();
            assert!(!Path::new("/dev/null").is_file());
        }
        let error = write_whole(folder.path(), b"no").unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(write_whole(folder.path().join("no/where"), b"").is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
