//! `--importance` of several commands.

use std::path::Path;

use crate::base::display::printable;
use crate::calibration::importance::File;
use crate::convert::Importance;

/// Reads a file of importance. Says which matrices it has never seen an input of.
pub fn read(path: &Path) -> anyhow::Result<Importance> {
    let file = File::read(path)?;
    let importance = file.importance()?;
    let n_empty = file.sums.matrices.len() - importance.values.len();
    if n_empty > 0 {
        let name = file.name();
        eprintln!(
            "nibble: warning: {}: {n_empty} of {} matrices never had an input while it was made; they are quantized as if \
             there were no importance",
            printable(&name),
            file.sums.matrices.len()
        );
    }
    Ok(importance)
}
