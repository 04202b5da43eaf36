//! `nibble quants`

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};

use super::out::{self, Out};
use super::table::{self, Align};
use crate::arch::{self, Hyperparameters};
use crate::base::units;
use crate::gguf::TensorType;
use crate::recipe::{Plan, Recipe, plan};

/// List the recipes, with bits per weight and the resulting file sizes
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nibble quants --show Q4_K_M                    the rules, and the reason for each
  nibble quants --show Q4_K_M --toml > my.toml   a recipe to change, for 'nibble convert -q my.toml'")]
pub struct Args {
    /// Show one recipe's rules and the reason for each
    #[arg(long, value_name = "NAME", conflicts_with = "recipe")]
    show: Option<String>,
    /// Show the rules of your own recipe, a TOML file
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// With --show: print the recipe as TOML, to start your own from
    #[arg(long, requires = "show", conflicts_with = "json")]
    toml: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    out::to_stdout(|out| quants(&args, out))
}

fn quants(args: &Args, out: &mut Out) -> anyhow::Result<()> {
    let one = match (&args.show, &args.recipe) {
        (Some(name), _) => Some(find(name)?),
        (None, Some(path)) => Some(Recipe::from_file(path)?),
        (None, None) => None,
    };
    if let (Some(toml), true) = (one.as_ref().and_then(Recipe::builtin_toml), args.toml) {
        return Ok(write!(out, "{toml}")?);
    }
    match (one, args.json) {
        (None, false) => list(out),
        (Some(recipe), false) => show(&recipe, out),
        (None, true) => print_json(&Recipe::all().iter().map(summary).collect::<anyhow::Result<Value>>()?, out),
        (Some(recipe), true) => {
            let mut all = summary(&recipe)?;
            all["type"] = recipe.ty.name().into();
            all["rules"] = serde_json::to_value(&recipe.rules)?;
            print_json(&all, out)
        }
    }
}

fn find(name: &str) -> anyhow::Result<Recipe> {
    let found = Recipe::find(name).cloned();
    if Path::new(name).is_file() {
        return found.with_context(|| format!("'{name}' is a file: did you mean --recipe {name}?"));
    }
    Ok(found?)
}

fn print_json(value: &Value, out: &mut Out) -> anyhow::Result<()> {
    Ok(writeln!(out, "{}", serde_json::to_string_pretty(value)?)?)
}

/// Returns the recipe's plan for each of [`Hyperparameters::KNOWN`], without importance.
fn plans(recipe: &Recipe) -> anyhow::Result<Vec<Plan>> {
    let plan_of =
        |hyper: Hyperparameters| plan(recipe, &hyper.topology(), &arch::tensors(&hyper, TensorType::BF16), false, &[]);
    Ok(Hyperparameters::KNOWN.iter().map(|(_, hyper)| plan_of(hyper())).collect::<Result<_, _>>()?)
}

/// Returns the bits per weight of the last and largest model.
fn bits(plans: &[Plan]) -> f64 {
    plans.last().map_or(0.0, Plan::bits_per_weight)
}

fn summary(recipe: &Recipe) -> anyhow::Result<Value> {
    let plans = plans(recipe)?;
    let bytes: serde_json::Map<String, Value> = Hyperparameters::KNOWN
        .iter()
        .zip(&plans)
        .map(|((name, _), plan)| (name.to_string(), plan.total_bytes().into()))
        .collect();
    Ok(json!({
        "name": recipe.name,
        "description": recipe.description,
        "file_type": recipe.file_type,
        "bits_per_weight": bits(&plans),
        "bytes": bytes,
    }))
}

/// Prints the table of all recipes.
fn list(out: &mut Out) -> anyhow::Result<()> {
    let mut columns = vec![("Recipe", Align::Left), ("Bits", Align::Right)];
    // Short headings leave a narrow terminal room for the words.
    columns.extend(
        Hyperparameters::KNOWN.iter().map(|(name, _)| (name.strip_prefix("Yi-").unwrap_or(name), Align::Right)),
    );
    columns.push(("For", Align::Left));
    let mut table = table::new(&columns);
    for recipe in Recipe::all() {
        let plans = plans(recipe)?;
        let mut row = vec![recipe.name.clone(), format!("{:.2}", bits(&plans))];
        row.extend(plans.iter().map(|plan| format!("{:.1}", plan.total_bytes() as f64 / 1e9)));
        row.push(recipe.description.clone());
        table.add_row(row);
    }
    out.table(table)?;
    writeln!(
        out,
        "\nBits per weight, and GB of Yi-6B, Yi-9B and Yi-34B.\nTo see the rules of one: nibble quants --show Q4_K_M"
    )?;
    Ok(())
}

/// Prints one recipe: its sizes and its rules.
fn show(recipe: &Recipe, out: &mut Out) -> anyhow::Result<()> {
    let plans = plans(recipe)?;
    let sizes: Vec<String> = Hyperparameters::KNOWN
        .iter()
        .zip(&plans)
        .map(|((name, _), plan)| format!("{name} {}", units::bytes(plan.total_bytes())))
        .collect();
    let mut table = table::new(&[("Type", Align::Left), ("Tensors", Align::Left), ("Why", Align::Left)]);
    for rule in &recipe.rules {
        let (mut tensors, conditions) = (rule.role_names().join(", "), rule.conditions());
        if !conditions.is_empty() {
            tensors += &format!(": {conditions}");
        }
        table.add_row([rule.ty.to_string(), tensors, rule.why.clone()]);
    }
    let rest = if recipe.rules.is_empty() { "all matrices" } else { "all other matrices" };
    table.add_row([recipe.ty.name(), rest, "the type of this recipe"]);
    table.add_row(["F32", "norms, biases", "they are few, and llama.cpp computes with them in F32"]);
    writeln!(out, "{}: {}", recipe.name, recipe.description)?;
    writeln!(out, "{:.2} bits per weight; {}\n", bits(&plans), sizes.join(", "))?;
    out.table(table)?;
    writeln!(out, "\nThe first line that matches a tensor decides its type.")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr;

    use super::*;

    fn printed(width: u16, print: impl FnOnce(&mut Out) -> anyhow::Result<()>) -> String {
        let mut text = Vec::new();
        print(&mut Out::new(&mut text, Some(width))).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn the_list_fits_narrow_and_wide_terminals() {
        for width in [60, 80, 200] {
            let list = printed(width, list);
            assert!(list.lines().all(|line| line.width() <= width.into()), "{width}:\n{list}");
            for recipe in Recipe::all() {
                let row = list.lines().find(|line| line.split_whitespace().next() == Some(&recipe.name));
                // Numbers are never broken over two lines.
                let row: Vec<&str> =
                    row.unwrap_or_else(|| panic!("{}:\n{list}", recipe.name)).split_whitespace().collect();
                assert!(row[1..5].iter().all(|cell| cell.parse::<f64>().is_ok()), "{row:?}");
            }
            let row = list.lines().find(|line| line.starts_with("Q4_K_M ")).unwrap();
            assert!(row.split_whitespace().take(5).eq(["Q4_K_M", "4.81", "3.7", "5.3", "20.7"]), "{row}");
        }
        let wide = printed(200, list);
        assert_eq!(wide.lines().count(), 1 + Recipe::all().len() + 3, "a line each where there is room:\n{wide}");
    }

    #[test]
    fn a_recipe_is_shown_with_every_rule_and_its_reason() {
        for recipe in Recipe::all() {
            for width in [60, 80, 200] {
                let text = printed(width, |out| show(recipe, out));
                assert!(text.starts_with(&format!("{}: ", recipe.name)));
                let table = text.lines().skip(3);
                assert!(table.clone().all(|line| line.width() <= width.into()), "{width}:\n{text}");
            }
            let text = printed(400, |out| show(recipe, out));
            for rule in &recipe.rules {
                assert!(text.contains(&rule.why) && text.contains(&rule.conditions()), "{text}");
            }
        }
    }

    #[test]
    fn the_toml_of_a_recipe_is_read_as_the_same_recipe() {
        for recipe in Recipe::all() {
            let args = Args { show: Some(recipe.name.clone()), recipe: None, toml: true, json: false };
            let text = printed(40, |out| quants(&args, out));
            assert_eq!(&Recipe::from_toml(&text, "my.toml").unwrap(), recipe, "with the hash of its text");
        }
    }

    #[test]
    fn json_gives_the_bytes_of_each_model() {
        let summary = summary(Recipe::builtin("Q4_K_M").unwrap()).unwrap();
        assert_eq!(summary["name"], "Q4_K_M");
        // 19700.24 MiB, as llama.cpp says.
        let mib = summary["bytes"]["Yi-34B"].as_u64().unwrap() as f64 / (1 << 20) as f64;
        assert!((mib - 19700.24).abs() < 0.005, "{mib}");
        assert!((summary["bits_per_weight"].as_f64().unwrap() - 4.81).abs() < 0.005);
    }

    #[test]
    fn what_llama_quantize_calls_a_recipe_is_understood() {
        // `enum llama_ftype`: 15 is MOSTLY_Q4_K_M, 30 MOSTLY_IQ4_XS, 0 ALL_F32.
        for (name, wanted) in [
            ("q4_k", "Q4_K_M"),
            ("Q3_K", "Q3_K_M"),
            ("Q5_k", "Q5_K_M"),
            ("15", "Q4_K_M"),
            ("30", "IQ4_XS"),
            ("0", "F32"),
            ("q4_k_s", "Q4_K_S"),
        ] {
            assert_eq!(find(name).unwrap().name, wanted);
        }
        assert!(find("4").is_err() && find("Q2").is_err());
    }

    #[test]
    fn an_unknown_name_gets_the_known_ones() {
        let message = find("Q4_K_X").unwrap_err().to_string();
        assert!(message.starts_with("there is no recipe 'Q4_K_X'; known are F32, BF16,"), "{message}");
        assert!(format!("{:#}", find("Cargo.toml").unwrap_err()).contains("did you mean --recipe Cargo.toml?"));
    }
}
