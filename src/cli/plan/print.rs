//! The table and its conclusion, and the same as JSON.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::candidate::{Candidate, quoted};
use super::row::{Fit, Row};
use super::{Target, size};
use crate::base::display::printable;
use crate::base::units;
use crate::cli::out::Out;
use crate::cli::table::{self, Align};
use crate::engine::SessionOptions;
use crate::llama::KvTypes;
use crate::placement::{self, Machine, Placement};
use crate::remote::Address;

/// A plan.
pub(super) struct Planned<'a> {
    pub model: &'a Path,
    pub target: &'a Target,
    pub candidates: &'a [Candidate],
    pub rows: &'a [Row],
    /// The row to take, if any fits.
    pub best: Option<usize>,
}

pub(super) fn table(out: &mut Out, planned: &Planned) -> anyhow::Result<()> {
    let Planned { model, target, candidates, rows, best } = *planned;
    let name = model.file_name().unwrap_or(model.as_os_str()).to_string_lossy();
    let Some(first) = candidates.first() else { return Ok(()) };
    let weights: u64 = first.outline.tensors().iter().map(|tensor| tensor.n_elements().unwrap_or(0)).sum();
    let trained = first.n_ctx_train().map_or(String::new(), |n| format!(", trained on {n} tokens at a time"));
    let model = format!(
        "{}: {} weights, {} layers{trained}.",
        printable(&name),
        units::count(weights),
        first.outline.n_layers()
    );
    out.paragraph(&model)?;
    out.paragraph(&machine(target))?;
    writeln!(out)?;

    let has_speed = rows.iter().any(|row| row.writing.is_some());
    let has_most = rows.iter().any(|row| row.most.is_some());
    let mut columns = vec![
        (if candidates.len() > 1 { "Recipe" } else { "File" }, Align::Left),
        ("Bits", Align::Right),
        ("Size", Align::Right),
        ("Context", Align::Right),
        ("KV", Align::Left),
        ("Memory", Align::Right),
    ];
    columns.extend((!target.gpus.is_empty()).then_some((elsewhere(target), Align::Right)));
    columns.push(("Fits", Align::Left));
    columns.extend(has_speed.then_some(("Reads", Align::Right)));
    columns.extend((has_speed || has_most).then_some(("Writes", Align::Right)));
    let mut lines = table::new(&columns);
    for row in rows {
        let candidate = &candidates[row.candidate];
        let mut cells = vec![
            printable(&candidate.name).into_owned(),
            format!("{:.2}", candidate.bits()),
            size(candidate.file_bytes),
            row.spot.n_ctx.to_string(),
            row.spot.kv_types.to_string(),
            size(host(row)),
        ];
        if !target.gpus.is_empty() {
            cells.push(row.fit.placement().map_or(String::new(), |placed| size(placed.devices.iter().sum())));
        }
        cells.push(fits(row, candidate, target));
        if has_speed {
            cells.push(row.reading.map_or("-".to_string(), speed));
        }
        if has_speed || has_most {
            let most = || row.most.map_or("-".to_string(), |most| format!("<{}", speed(most)));
            cells.push(row.writing.map_or_else(most, speed));
        }
        lines.add_row(cells);
    }
    out.table(lines)?;
    writeln!(out)?;
    if has_speed {
        out.paragraph(
            "Reads, writes: tokens a second, of a prompt that half fills the context, and after it. Measured here.",
        )?;
    } else if has_most {
        let on_gpu = if target.gpus.is_empty() { "" } else { " GPUs are taken to cost no time." };
        out.paragraph(&format!(
            "Writes: the most tokens a second that this bandwidth allows, when the context is half full.{on_gpu}"
        ))?;
    } else if target.is_here && !target.gpus.is_empty() {
        out.paragraph("Speed is not predicted where there is a GPU or a worker; 'nibble bench' measures it.")?;
    } else if !target.is_here {
        out.paragraph("How fast it will be depends on the other machine's memory: pass its --bandwidth.")?;
    }
    match best.map(|i| &rows[i]) {
        Some(row) => conclusion(out, target, candidates, row),
        None => nothing(out, target, rows),
    }
}

/// Returns a sentence about the machine.
fn machine(target: &Target) -> String {
    let Machine { total, available } = target.machine;
    let gpus: Vec<String> = target
        .gpus
        .iter()
        .map(|(room, name)| format!("{} with {}", name.as_deref().unwrap_or("a GPU"), size(room.bytes)))
        .collect();
    let gpus = if gpus.is_empty() { String::new() } else { format!(", {}", gpus.join(", ")) };
    if !target.is_here {
        let bandwidth = target.bandwidth.map_or(String::new(), |bytes| format!(", read at {} a second", size(bytes)));
        return format!(
            "Another machine: {} of memory{bandwidth}{gpus}; {} of memory are left to the system.",
            size(total),
            size(total - target.machine.at_best().min(total))
        );
    }
    let cpu = placement::cpu_name().unwrap_or_else(|| "this machine".to_string());
    let threads = if target.threads == 1 { "1 thread".to_string() } else { format!("{} threads", target.threads) };
    format!("{}, {threads}: {} of memory, of which {} are free{gpus}.", printable(&cpu), size(total), size(available))
}

/// Returns what layers that are not in this memory are on.
fn elsewhere(target: &Target) -> &'static str {
    if target.workers.is_empty() { "GPU" } else { "Elsewhere" }
}

/// Returns the bytes of main memory that a row takes, or would take.
fn host(row: &Row) -> u64 {
    match &row.fit {
        Fit::Now(placed) | Fit::Alone(placed) => placed.host,
        Fit::No(lacks) => lacks.needs,
    }
}

fn fits(row: &Row, candidate: &Candidate, target: &Target) -> String {
    let on_gpu = |placed: &Placement| match placed.n_on_devices {
        0 => String::new(),
        n if n > candidate.outline.n_layers() && target.workers.is_empty() => ", all on GPU".to_string(),
        n if target.workers.is_empty() => format!(", {n} layers on GPU"),
        n => format!(", {n} layers elsewhere"),
    };
    match &row.fit {
        Fit::Now(placed) => format!("yes{}", on_gpu(placed)),
        // What runs on a machine that is elsewhere is not known.
        Fit::Alone(placed) if !target.is_here => format!("yes{}", on_gpu(placed)),
        Fit::Alone(placed) => format!("alone{}", on_gpu(placed)),
        Fit::No(_) => "no".to_string(),
    }
}

fn speed(tokens: f64) -> String {
    if tokens < 9.95 { format!("{tokens:.1}") } else { format!("{tokens:.0}") }
}

fn conclusion(out: &mut Out, target: &Target, candidates: &[Candidate], row: &Row) -> anyhow::Result<()> {
    let candidate = &candidates[row.candidate];
    let what = if candidates.len() > 1 { format!("Take {}", candidate.name) } else { "Run it".to_string() };
    let rate = match (row.writing, row.most) {
        (Some(writing), _) => format!(", about {} tokens a second", speed(writing)),
        (None, Some(most)) => format!(", at most {} tokens a second", speed(most)),
        (None, None) => String::new(),
    };
    let alone = match row.fit {
        Fit::Alone(_) if target.is_here => " Close other programs first: less than that is free now.",
        _ => "",
    };
    writeln!(out)?;
    out.paragraph(&format!(
        "{what} with {} tokens of context and a KV cache in {}: {} of memory{rate}.{alone}",
        row.spot.n_ctx,
        row.spot.kv_types,
        size(host(row)),
    ))?;
    if !candidate.is_there && candidate.make.is_none() {
        writeln!(out, "With a file of that recipe:")?;
    }
    for line in commands(candidate, row, &target.workers) {
        writeln!(out, "  {}", printable(&line))?;
    }
    Ok(())
}

/// Returns what to type.
fn commands(candidate: &Candidate, row: &Row, workers: &[Address]) -> Vec<String> {
    let mut run = format!("nibble run {} --ctx {}", quoted(&candidate.file), row.spot.n_ctx);
    if row.spot.kv_types != KvTypes::default() {
        run.push_str(&format!(" --kv-type {}", row.spot.kv_types));
    }
    let on_devices = row.fit.placement().map_or(0, |placed| placed.n_on_devices);
    workers.iter().for_each(|worker| run.push_str(&format!(" --worker {worker}")));
    if workers.is_empty() && (1..=candidate.outline.n_layers()).contains(&on_devices) {
        run.push_str(&format!(" --gpu-layers {on_devices}"));
    }
    let is_default = candidate.n_ctx_train().unwrap_or(u32::MAX).min(SessionOptions::DEFAULT_N_CTX) == row.spot.n_ctx;
    if is_default {
        run = run.replace(&format!(" --ctx {}", row.spot.n_ctx), "");
    }
    let make = candidate.make.clone().filter(|_| !candidate.is_there);
    make.into_iter().chain([run]).collect()
}

fn nothing(out: &mut Out, target: &Target, rows: &[Row]) -> anyhow::Result<()> {
    let least = rows.iter().map(host).min().unwrap_or(0);
    writeln!(out)?;
    Ok(out.paragraph(&format!(
        "Nothing of it fits: the smallest takes {}, and {} are there at best. A smaller model, or fewer bits (-q Q2_K), may.",
        size(least),
        size(target.machine.at_best())
    ))?)
}

pub(super) fn json(out: &mut Out, planned: &Planned) -> anyhow::Result<()> {
    let Planned { model, target, candidates, rows, best } = *planned;
    let row = |row: &Row| {
        let candidate = &candidates[row.candidate];
        let fits = match row.fit {
            Fit::Now(_) => "now",
            Fit::Alone(_) => "alone",
            Fit::No(_) => "no",
        };
        let placed = row.fit.placement();
        json!({
            "name": candidate.name,
            "bits_per_weight": candidate.bits(),
            "file_bytes": candidate.file_bytes,
            "n_ctx": row.spot.n_ctx,
            "kv_type": row.spot.kv_types.to_string(),
            "fits": fits,
            "memory": {
                "host": host(row),
                "devices": placed.map(|placed| &placed.devices),
                "weights": row.demand.parts.total(),
                "kv_cache": row.demand.kv.iter().sum::<u64>(),
                "compute": row.demand.compute,
                "program": row.demand.program,
            },
            "gpu_layers": placed.map(|placed| placed.n_on_devices),
            "reading": row.reading,
            "writing": row.writing,
            "writing_at_most": row.most,
            "split": placed.map(|placed| &placed.split),
            "commands": commands(candidate, row, &target.workers),
        })
    };
    let all = json!({
        "model": model,
        "machine": {
            "is_this": target.is_here,
            "memory": target.machine.total,
            "available": (target.machine.available > 0).then_some(target.machine.available),
            "gpus": target.gpus.iter().map(|(room, _)| room.bytes).collect::<Vec<_>>(),
            "workers": target.workers.iter().map(Address::to_string).collect::<Vec<_>>(),
            "bandwidth": target.bandwidth,
            "threads": target.threads,
        },
        "rows": rows.iter().map(row).collect::<Vec<Value>>(),
        "recommended": best,
    });
    Ok(writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?)
}
