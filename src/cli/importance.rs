//! The flag `--importance` of several commands.

use std::path::Path;

use crate::base::display::printable;
use crate::calibration::Importance;
use crate::calibration::importance::File;

/// Reads an importance file, and warns of matrices that had no input when it was made.
pub fn read(path: &Path) -> anyhow::Result<Importance> {
    let file = File::read(path)?;
    let importance = file.importance()?;
    let n_empty = file.matrices().len() - importance.matrices().len();
    if n_empty > 0 {
        let name = file.name();
        eprintln!(
            "nibble: warning: {}: {n_empty} of {} matrices had no input while it was made; they are quantized without \
             importance",
            printable(&name),
            file.matrices().len()
        );
    }
    Ok(importance)
}
