//! A comparison as one HTML page: without scripts, without network access, for screens of all widths and for paper.
//!
//! Text from files goes through [`wording::plain`] and through the escaping of `maud`, so that it cannot become markup.
//! As a second line of defence, the page has a Content-Security-Policy that forbids scripts and connections.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::base::units;
use crate::report::results::{Candidate, Change, Estimate, File, Guess, Results, Scores, TaskScores, TensorError};

use super::charts::{self, Heat, Measure};
use super::ranking::{Outcome, Ranking};
use super::wording::{self, Shown, plain};

/// The most candidates with a line in one drawing.
const LINES: usize = charts::MOST_SERIES;
/// The most candidates whose weights are drawn layer by layer.
const HEAT_MAPS: usize = 3;
/// The most candidates for which the table of pairs shows numbers.
const NUMBERED_PAIRS: usize = 8;
/// The most terminal columns for the name of a text, a tensor or the like.
const LONGEST_NAME: usize = 32;
/// The most rows of a table that is open although a drawing shows the same numbers.
const MOST_ROWS_OPEN: usize = 12;
/// More layers than this are not drawn: no model has them.
const MOST_LAYERS: usize = 512;
/// More kinds of tensors than this are not drawn.
const MOST_ROLES: usize = 24;

/// A section, with its title in the table of contents.
struct Section {
    id: &'static str,
    title: String,
    body: Markup,
}

/// Returns the page.
pub fn html(results: &Results) -> String {
    let ranking = Ranking::new(results);
    let page = Page { results, ranking };
    let sections: Vec<Section> = [
        page.candidates(),
        page.front(),
        page.positions(),
        page.distribution(),
        page.slices(),
        page.pairs(),
        page.tasks(),
        page.weights(),
        page.changes(),
        page.failures(),
        page.method(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let title = page.title();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                title { (title) }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                main {
                    h1 { (title) }
                    p.by { "Compared by nibble " (plain(&results.version)) "." }
                    div.verdict { @for sentence in page.ranking.summary() { p { (sentence) } } }
                    @if sections.len() > 2 {
                        nav aria-label="Contents" {
                            @for section in &sections { a href={ "#" (section.id) } { (section.title) } }
                        }
                    }
                    @for section in &sections {
                        section id=(section.id) {
                            h2 { (section.title) }
                            (section.body)
                        }
                    }
                }
            }
        }
    };
    page.into_string()
}

struct Page<'a> {
    results: &'a Results,
    ranking: Ranking<'a>,
}

impl Page<'_> {
    fn title(&self) -> String {
        let reference = wording::shortened(&plain(&self.results.reference.file.name), 60);
        let count = self.results.candidates.len();
        match (count, reference.is_empty()) {
            (_, true) => "A comparison of quantizations".into(),
            (1, _) => format!("{} against {reference}", self.ranking.labels[0]),
            _ => format!("{count} quantizations of {reference} compared"),
        }
    }

    fn candidate(&self, i: usize) -> &Candidate {
        &self.results.candidates[i]
    }

    /// Returns the name of a row, with the number that drawings use, and a mark if the candidate is on the front.
    fn name(&self, i: usize) -> Markup {
        let long = unicode_width::UnicodeWidthStr::width(self.ranking.labels[i].as_str()) > 24;
        html! {
            th.long[long] scope="row" {
                span.number { (i + 1) } " " (self.ranking.labels[i])
                @if self.candidate(i).on_front { " " span.front title="on the front" { "●" } }
            }
        }
    }

    fn candidates(&self) -> Option<Section> {
        let results = self.results;
        if results.candidates.is_empty() {
            return None;
        }
        let measured: Vec<usize> = self.ranking.measured.clone();
        let prefix = wording::common_prefix(results);
        let importance = results.candidates.iter().any(|candidate| candidate.file.importance.is_some());
        let body = html! {
            @if !prefix.is_empty() {
                p.note { "Names are shown without their common beginning, " code { (plain(prefix)) } "." }
            }
            (scroll("The candidates, smallest file first", html! {
                table {
                    thead { tr {
                        th scope="col" { "Candidate" }
                        th.n scope="col" { "Size" }
                        th.n scope="col" { "Mean KLD" br; "nats per token" }
                        th.n scope="col" { "Same top" br; "%" }
                        th.n scope="col" { "Perplexity" br; "ratio" }
                        th.n scope="col" { "Perplexity" }
                        th.n scope="col" { "Bits per" br; "weight" }
                        @if importance { th scope="col" { "Importance" } }
                    } }
                    tbody {
                        @for (i, candidate) in results.candidates.iter().enumerate() {
                            tr {
                                (self.name(i))
                                td.n { (units::bytes(candidate.file.bytes)) }
                                @if let Some(scores) = &candidate.overall {
                                    (cell(wording::estimate(&scores.kld)))
                                    (cell(wording::percent(&scores.same_top)))
                                    (cell(wording::estimate(&scores.perplexity_ratio)))
                                    (cell(wording::estimate(&scores.perplexity)))
                                } @else if candidate.failure.is_some() {
                                    td colspan="4" { a href="#failures" { "failed" } }
                                } @else {
                                    td colspan="4" { "not measured yet" }
                                }
                                td.n { @if let Some(bits) = candidate.file.bits_per_weight { (format!("{bits:.2}")) } }
                                @if importance { td { (short(candidate.file.importance.as_deref().unwrap_or_default())) } }
                            }
                        }
                    }
                }
            }))
            p.note {
                "● on the front: no smaller candidate has as low a KLD. " (self.intervals()) " "
                a href="#method" { "What the numbers mean" } "."
            }
            @if !measured.is_empty() {
                details {
                    summary { "All measures" }
                    (self.measures(&measured))
                }
            }
        };
        Some(Section { id: "candidates", title: "The candidates".into(), body })
    }

    /// Says what the small numbers below the numbers are.
    fn intervals(&self) -> String {
        let confidence = self.results.settings.confidence;
        match confidence > 0.0 {
            true => format!("Below a number is its {:.0}% interval.", confidence * 100.0),
            false => "Below a number is its interval, if it has one.".into(),
        }
    }

    fn measures(&self, measured: &[usize]) -> Markup {
        type Measure = (&'static str, fn(&Estimate) -> Shown, fn(&Scores) -> Estimate);
        const MEASURES: [Measure; 7] = [
            ("KLD, median", wording::estimate, |scores| scores.kld_median),
            ("KLD, 90 %", wording::estimate, |scores| scores.kld_90),
            ("KLD, 99 %", wording::estimate, |scores| scores.kld_99),
            ("KLD, 99.9 %", wording::estimate, |scores| scores.kld_999),
            ("KLD, largest", wording::estimate, |scores| scores.kld_max),
            ("Top 5 shared, %", wording::percent, |scores| scores.top5_overlap),
            ("RMS Δp, %", wording::percent, |scores| scores.rms_dp),
        ];
        scroll(
            "All measures",
            html! {
                table {
                    thead { tr {
                        th scope="col" { "Candidate" }
                        th.n scope="col" { "Tokens" }
                        @for (name, ..) in MEASURES { th.n scope="col" { (name) } }
                    } }
                    tbody {
                        @for &i in measured {
                            @if let Some(scores) = &self.candidate(i).overall {
                                tr {
                                    (self.name(i))
                                    td.n { (wording::thousands(scores.tokens)) }
                                    @for (_, show, measure) in MEASURES { (cell(show(&measure(scores)))) }
                                }
                            }
                        }
                    }
                }
            },
        )
    }

    fn front(&self) -> Option<Section> {
        let chart = charts::front(self.results, &self.ranking)?;
        let undrawn: Vec<String> = self
            .ranking
            .measured
            .iter()
            .filter(|&&i| !(self.ranking.kld(i).is_finite() && self.ranking.kld(i) > 0.0))
            .map(|&i| format!("{} (KLD {})", self.ranking.labels[i], wording::number(self.ranking.kld(i))))
            .collect();
        let body = html! {
            p { "Size against loss. The line joins the candidates that have a lower KLD than everything smaller. Hollow \
                 points are not on the line: a file that is no larger loses no more. Bars are intervals." }
            (figure(chart))
            @if charts::front_has_numbers(&self.ranking) {
                p.note { "The numbers refer to the table above. Where points are too close together, some have no number." }
            }
            @if !undrawn.is_empty() {
                p.note { "A logarithmic axis cannot show " (wording::listed(&undrawn)) "." }
            }
        };
        Some(Section { id: "front", title: "Size against loss".into(), body })
    }

    /// Says which candidates a drawing shows, if it does not show all.
    fn shown(&self, chosen: &[usize], of: usize) -> Markup {
        let names: Vec<String> = chosen.iter().map(|&i| self.ranking.labels[i].clone()).collect();
        html! { @if chosen.len() < of { p.note { "Of " (of) " candidates, these are shown: " (wording::listed(&names)) "." } } }
    }

    fn positions(&self) -> Option<Section> {
        let has = |i: usize| !self.candidate(i).positions.is_empty();
        let all: Vec<usize> = self.ranking.measured.iter().copied().filter(|&i| has(i)).collect();
        let chosen = self.ranking.chosen(LINES, has);
        let chart = charts::positions(self.results, &self.ranking, &chosen)?;
        let stretches = &self.candidate(*all.first()?).positions;
        let body = html! {
            p { "How the loss changes along the text: a rising line means that errors add up over a long text." }
            (self.shown(&chosen, all.len()))
            (figure(chart))
            details {
                summary { "The numbers" }
                (scroll("Mean KLD by position", html! {
                    table {
                        thead { tr {
                            th scope="col" { "Candidate" }
                            @for stretch in stretches { th.n scope="col" { (stretch.from) "–" (stretch.to.saturating_sub(1)) } }
                        } }
                        tbody { @for &i in &all { tr {
                            (self.name(i))
                            @for stretch in &self.candidate(i).positions { (cell(wording::estimate(&stretch.kld))) }
                        } } }
                    }
                }))
            }
        };
        Some(Section { id: "positions", title: "Along the text".into(), body })
    }

    fn distribution(&self) -> Option<Section> {
        let has = |i: usize| self.candidate(i).histogram.as_ref().is_some_and(|h| charts::total(h) > 0);
        let all = self.ranking.measured.iter().filter(|&&i| has(i)).count();
        let chosen = self.ranking.chosen(LINES, has);
        let chart = charts::histogram(self.results, &self.ranking, &chosen)?;
        let first = self.candidate(*chosen.first()?).histogram.as_ref()?;
        let edge = |bin: usize| wording::number(10_f64.powf(first.log10_from + first.log10_step * bin as f64));
        let body = html! {
            p { "Each line counts tokens by their KLD. At most tokens it is small; at the right end of a line, the candidate \
                 and the reference disagree. Values beyond an end are counted in the last step there." }
            (self.shown(&chosen, all))
            (figure(chart))
            details {
                summary { "The numbers" }
                (scroll("Tokens by KLD", html! {
                    table {
                        thead { tr {
                            th scope="col" { "KLD from" }
                            @for &i in &chosen { th.n scope="col" { (self.ranking.labels[i]) } }
                        } }
                        tbody { @for bin in 0..first.counts.len() { tr {
                            th scope="row" { (edge(bin)) }
                            @for &i in &chosen {
                                @let counts = self.candidate(i).histogram.as_ref().map_or(&[][..], |h| &h.counts);
                                td.n { @if let Some(&count) = counts.get(bin) { (wording::thousands(count)) } }
                            }
                        } } }
                    }
                }))
            }
        };
        Some(Section { id: "distribution", title: "How many tokens are how far off".into(), body })
    }

    fn slices(&self) -> Option<Section> {
        let results = self.results;
        let scores = |i: usize, slice: usize| self.candidate(i).slices.get(slice).and_then(Option::as_ref);
        let measured: Vec<usize> = (self.ranking.measured.iter().copied())
            .filter(|&i| (0..results.slices.len()).any(|slice| scores(i, slice).is_some()))
            .collect();
        if results.slices.len() < 2 || measured.is_empty() {
            return None;
        }
        let names: Vec<String> = results.slices.iter().map(|slice| short(&slice.name)).collect();
        let drawn = names.len().min(charts::MOST_SERIES);
        let rows: Vec<charts::Row> = measured
            .iter()
            .map(|&i| {
                let estimates = (0..drawn).map(|slice| scores(i, slice).map(|scores| scores.kld));
                (self.ranking.labels[i].clone(), estimates.collect())
            })
            .collect();
        let measure = Measure {
            title: "Mean KLD by text",
            axis: "Mean KLD, nats per token (lower is better)",
            logarithmic: true,
            line: None,
        };
        let body = html! {
            p { "If a candidate loses more on one text than on another, its cost depends on the kind of text that you use it for." }
            @if let Some(chart) = charts::rows(&rows, &names[..drawn], &measure) { (figure(chart)) }
            @if drawn < names.len() { p.note { "The drawing shows the first " (drawn) " texts, and the table shows all." } }
            (folded(measured.len(), scroll("KLD by text", html! {
                table {
                    thead {
                        tr {
                            th scope="col" { "Candidate" }
                            @for name in &names {
                                th.n scope="col" { (name) br; "KLD" }
                                th.n scope="col" { (name) br; "same top, %" }
                                th.n scope="col" { (name) br; "perplexity ratio" }
                            }
                        }
                    }
                    tbody { @for &i in &measured { tr {
                        (self.name(i))
                        @for slice in 0..names.len() {
                            @let scores = scores(i, slice);
                            (optional(scores.map(|scores| wording::estimate(&scores.kld))))
                            (optional(scores.map(|scores| wording::percent(&scores.same_top))))
                            (optional(scores.map(|scores| wording::estimate(&scores.perplexity_ratio))))
                        }
                    } } }
                }
            })))
        };
        Some(Section { id: "texts", title: "By text".into(), body })
    }

    fn pairs(&self) -> Option<Section> {
        let ranking = &self.ranking;
        if ranking.pair_count() == 0 {
            return None;
        }
        let measured = &ranking.measured;
        let numbered = measured.len() <= NUMBERED_PAIRS;
        let verdicts = ranking.verdicts();
        let body = html! {
            p {
                "Each row against each column: " span.w { " ▲ " } " the row is nearer to the reference, " span.l { " ▽ " }
                " the column is nearer, ≈ the difference could be noise, ? too few windows were read to tell."
                @if numbered { " The number is the row's KLD minus the column's." }
            }
            (scroll("Who beats whom", html! {
                table.matrix {
                    thead { tr {
                        th scope="col" { "" }
                        @for &b in measured { th scope="col" title=(ranking.labels[b]) {
                            @if numbered { (wording::shortened(&ranking.labels[b], 14)) } @else { (b + 1) }
                        } }
                    } }
                    tbody { @for &a in measured { tr {
                        (self.name(a))
                        @for &b in measured {
                            @match ranking.outcome(a, b) {
                                _ if a == b => td {},
                                None => td { "?" },
                                Some((kld, Outcome::Beats)) => td.w { "▲" @if numbered { small { (wording::difference(&kld).value) } } },
                                Some((kld, Outcome::Loses)) => td.l { "▽" @if numbered { small { (wording::difference(&kld).value) } } },
                                _ if ranking.is_unknown(a, b) => td { "?" },
                                Some((kld, Outcome::NotDistinguishable)) => td { "≈" @if numbered { small { (wording::difference(&kld).value) } } },
                            }
                        }
                    } } }
                }
            }))
            details open[numbered] {
                summary { "The pairs that matter: neighbours by size, and on the front" }
                ul { @for sentence in &verdicts { li { (sentence) } } }
            }
        };
        Some(Section { id: "pairs", title: "Who beats whom".into(), body })
    }

    fn tasks(&self) -> Option<Section> {
        let parts: Vec<Markup> = (0..self.results.tasks.len()).filter_map(|task| self.task(task)).collect();
        if parts.is_empty() {
            return None;
        }
        let body = html! {
            p { "Questions with one right answer. Lost: right in the reference and wrong in the candidate; won: the other \
                 way round. Chance: the probability that chance alone makes lost and won differ at least this much; \
                 below 0.05, the difference is unlikely to be noise." }
            @for part in parts { (part) }
        };
        Some(Section { id: "tasks", title: "Tasks".into(), body })
    }

    fn task(&self, task: usize) -> Option<Markup> {
        let named = &self.results.tasks[task];
        let of = |i: usize| self.candidate(i).tasks.get(task).and_then(Option::as_ref);
        let asked: Vec<usize> = (0..self.results.candidates.len()).filter(|&i| of(i).is_some()).collect();
        let reference = self.results.reference.tasks.get(task).and_then(Option::as_ref);
        let mut scores: Vec<&str> = Vec::new();
        for (name, _) in asked.iter().filter_map(|&i| of(i)).chain(reference).flat_map(|scores| &scores.scores) {
            if !scores.contains(&name.as_str()) {
                scores.push(name);
            }
        }
        if asked.is_empty() || scores.is_empty() {
            return None;
        }
        let score = |of: &TaskScores, wanted: &str| {
            of.scores.iter().find(|(name, _)| name == wanted).map(|(_, estimate)| *estimate)
        };
        let main = if scores.contains(&named.main.as_str()) { named.main.as_str() } else { scores[0] };
        let percent = |estimate: Estimate| Estimate {
            value: estimate.value * 100.0,
            interval: estimate.interval.map(|ends| ends.map(|end| end * 100.0)),
        };
        let rows: Vec<charts::Row> = asked
            .iter()
            .map(|&i| (self.ranking.labels[i].clone(), vec![of(i).and_then(|of| score(of, main)).map(percent)]))
            .collect();
        let title = short(&named.name);
        let axis = format!("{}, %{}", words(main), if reference.is_some() { " (line: the reference)" } else { "" });
        let line = reference.and_then(|of| score(of, main)).map(percent);
        let measure = Measure { title: &title, axis: &axis, logarithmic: false, line };
        let row = |name: Markup, of: &TaskScores| {
            html! {
                tr {
                    (name)
                    td.n { (wording::thousands(of.questions)) }
                    @for wanted in &scores { (optional(score(of, wanted).map(|estimate| wording::percent(&estimate)))) }
                    @if let Some(flips) = of.against_reference {
                        td.n { (flips.lost) } td.n { (flips.won) } td.n { (wording::number(flips.p_value)) }
                    } @else { td {} td {} td {} }
                }
            }
        };
        Some(html! {
            h3 { (title) }
            p.note {
                (plain(&named.format)) ", " (wording::thousands(named.questions)) " questions, "
                @match named.shots { 0 => "no examples before them", 1 => "one example before each", n => { (n) " examples before each" } }
                "."
            }
            @if let Some(chart) = charts::rows(&rows, &[], &measure) { (figure(chart)) }
            (folded(asked.len(), scroll(&title, html! {
                table {
                    thead { tr {
                        th scope="col" { "Candidate" } th.n scope="col" { "Asked" }
                        @for name in &scores { th.n scope="col" { (words(name)) br; "%" } }
                        th.n scope="col" { "Lost" } th.n scope="col" { "Won" } th.n scope="col" { "Chance" }
                    } }
                    tbody {
                        @if let Some(of) = reference { (row(html! { th scope="row" { "The reference" } }, of)) }
                        @for &i in &asked { @if let Some(of) = of(i) { (row(self.name(i), of)) } }
                    }
                }
            })))
        })
    }

    fn weights(&self) -> Option<Section> {
        let weights = |i: usize| self.candidate(i).weights.as_ref();
        let all: Vec<usize> = (0..self.results.candidates.len()).filter(|&i| weights(i).is_some()).collect();
        if all.is_empty() {
            return None;
        }
        let mut chosen = self.ranking.chosen(HEAT_MAPS, |i| weights(i).is_some());
        if chosen.is_empty() {
            chosen = all.iter().copied().take(HEAT_MAPS).collect();
        }
        let maps: Vec<(usize, Heat)> = chosen.iter().filter_map(|&i| Some((i, heat(self.candidate(i))?))).collect();
        let (drawn, maps): (Vec<usize>, Vec<Heat>) = maps.into_iter().unzip();
        let ends = charts::heat_ends(&maps);
        let skipped: Vec<(usize, &String)> = all
            .iter()
            .flat_map(|&i| weights(i).into_iter().flat_map(move |w| w.skipped.iter().map(move |s| (i, s))))
            .collect();
        let percent = |value: f64| wording::number(value * 100.0);
        let body = html! {
            p { "How far the weights themselves are from the reference's. This is measured without a text, and shows where \
                 in the model bits were saved. The effect on text is shown above." }
            @if !maps.is_empty() {
                (self.shown(&drawn, all.len()))
                @for (&i, map) in drawn.iter().zip(&maps) {
                    h3 { (self.ranking.labels[i]) }
                    @if let Some(chart) = ends.and_then(|ends| {
                        charts::heat(map, ends, &format!("Weight error of {}", self.ranking.labels[i]))
                    }) { (figure(chart)) }
                    details { summary { "The numbers: relative error in %" } (heat_table(map)) }
                }
            }
            (scroll("Weight error", html! {
                table {
                    thead { tr {
                        th scope="col" { "Candidate" }
                        th.n scope="col" { "Relative" br; "error, %" }
                        th.n scope="col" { "By importance," br; "%" }
                        th.n scope="col" { "RMS error" }
                        th.n scope="col" { "1 − cosine" }
                        th scope="col" { "The tensor that differs most" }
                        th.n scope="col" { "Relative" br; "error, %" }
                        th.n scope="col" { "Its worst" br; "row, %" }
                    } }
                    tbody { @for &i in &all { @if let Some(weights) = weights(i) { tr {
                        (self.name(i))
                        @if let Some(error) = weights.overall {
                            td.n { (percent(error.relative)) }
                            td.n { @if let Some(weighted) = error.weighted { (percent(weighted)) } }
                            td.n { (wording::number(error.rmse)) }
                            td.n { (wording::number(1.0 - error.cosine)) }
                        } @else { td {} td {} td {} td {} }
                        @if let Some(worst) = worst(&weights.tensors) {
                            td { (short(&worst.name)) " (" (short(&worst.ty)) ")" }
                            td.n { (percent(worst.error.relative)) }
                            td.n { (percent(worst.worst_row_relative)) " (row " (worst.worst_row) ")" }
                        } @else { td {} td {} td {} }
                    } } } }
                }
            }))
            @if !skipped.is_empty() {
                details {
                    summary { (wording::counted(skipped.len(), "tensor was", "tensors were")) " not compared" }
                    ul { @for (i, sentence) in skipped.iter().take(200) {
                        li { (self.ranking.labels[*i]) ": " (plain(sentence)) }
                    } }
                    @if skipped.len() > 200 { p.note { "The JSON has the other " (skipped.len() - 200) "." } }
                }
            }
        };
        Some(Section { id: "weights", title: "Where the weights differ".into(), body })
    }

    fn changes(&self) -> Option<Section> {
        let has = |i: usize| !self.candidate(i).changed.is_empty();
        let all = self.ranking.measured.iter().filter(|&&i| has(i)).count();
        let chosen = self.ranking.chosen(LINES, has);
        let each = if chosen.len() <= 2 { 10 } else { 4 };
        if chosen.is_empty() {
            return None;
        }
        let body = html! {
            p {
                "The places where a candidate differs most from the reference. The " mark { "marked" } " token is the one \
                 in the text; the table shows how likely each model finds it, and what each would have written instead."
            }
            (self.shown(&chosen, all))
            @for (place, &i) in chosen.iter().enumerate() {
                details open[place == 0] {
                    summary { (self.ranking.labels[i]) }
                    @for change in self.candidate(i).changed.iter().take(each) { (self.change(change)) }
                }
            }
        };
        Some(Section { id: "changes", title: "The most changed passages".into(), body })
    }

    fn change(&self, change: &Change) -> Markup {
        let likely = |likely: Option<f64>| match likely {
            None => html! { td.p style="--p:0" { "unknown" } },
            Some(share) => {
                let filled = if share.is_finite() { (share * 100.0).clamp(0.0, 100.0).round() } else { 0.0 };
                html! { td.p style={ "--p:" (filled) } { (wording::share(share)) " %" } }
            }
        };
        html! {
            div.change {
                p.slice {
                    @if let Some(slice) = self.results.slices.get(change.slice) { (plain(&slice.name)) ", " }
                    "token " (wording::thousands(change.token)) ", KLD " (wording::number(change.kld))
                }
                p.passage dir="auto" {
                    (passage(&change.before)) mark { (passage(&change.right.text)) } (passage(&change.after))
                }
                table {
                    thead { tr { th scope="col" { "Next token" } th.n scope="col" { "Reference" } th.n scope="col" { "Candidate" } } }
                    tbody { @for guess in guesses(change) { tr {
                        td { span.token { (plain(&guess.text)) } @if guess.text == change.right.text { " (the text's)" } }
                        (likely(guess.reference))
                        (likely(Some(guess.candidate)))
                    } } }
                }
            }
        }
    }

    fn failures(&self) -> Option<Section> {
        let failed: Vec<(usize, &String)> = (self.results.candidates.iter().enumerate())
            .filter_map(|(i, candidate)| Some((i, candidate.failure.as_ref()?)))
            .collect();
        if failed.is_empty() {
            return None;
        }
        let body = html! {
            p { "These candidates have no results, or only a part of them." }
            dl { @for (i, why) in failed { dt { (self.ranking.labels[i]) } dd { (plain(why)) } } }
        };
        Some(Section { id: "failures", title: "What failed".into(), body })
    }

    fn method(&self) -> Option<Section> {
        let results = self.results;
        let settings = &results.settings;
        let command: Vec<String> = results.command.iter().map(|word| wording::quoted(&plain(word))).collect();
        let tasks = self.results.candidates.iter().any(|candidate| candidate.tasks.iter().any(Option::is_some));
        let body = html! {
            @if !command.is_empty() { p { "The command:" } pre { code { (command.join(" ")) } } }
            @if settings.window > 0 {
                p {
                    "The texts were cut into windows of " (settings.window) " tokens. In each, the model read the first "
                    (settings.context) " tokens. Every token after these was scored: the probabilities that the \
                     candidate gives to all possible next tokens were compared with those of the reference."
                    @if let Some(k) = results.reference.trace_k {
                        " The reference was not run. Its predictions come from a trace, which has the " (k) " most likely \
                         tokens at each position, and the total probability of all others."
                    }
                }
            }
            @if settings.resamples > 0 {
                p {
                    "The intervals come from a bootstrap: whole windows were resampled, with replacement, "
                    (wording::thousands(settings.resamples.into())) " times (seed " (settings.seed) "), and the number was \
                     computed each time. The intervals show how much a number depends on which passages the texts \
                     happen to have. They do not show what it would be on texts of another kind."
                }
            }
            @if settings.threads > 0 || !settings.kv_type.is_empty() {
                p.note {
                    @if settings.threads > 0 { (wording::counted(settings.threads as usize, "thread", "threads")) ". " }
                    @if !settings.kv_type.is_empty() { "KV cache: " (plain(&settings.kv_type)) "." }
                }
            }
            h3 { "What the numbers mean" }
            dl {
                dt { "Token" }
                dd { "A piece of text as the model reads it: a word, a part of one, or a Chinese character or two." }
                dt { "KLD (Kullback–Leibler divergence)" }
                dd { "How far the candidate's probabilities for the next token are from the reference's: the extra surprise \
                      per token, in nats, of someone who trusts the candidate while the reference is right. 0 means the \
                      same probabilities for every token. A nat is about 1.44 bits. Mean KLD is the average over all \
                      scored tokens; 99 % of the tokens are below the 99 % KLD." }
                dt { "Same top" }
                dd { "At how many of 100 positions both find the same token most likely. At the others (flips), the \
                      candidate would write something else if it always took its most likely token." }
                dt { "Top 5 shared" }
                dd { "How many of the reference's five most likely tokens are among the candidate's five." }
                dt { "Perplexity" }
                dd { "The number of equally likely tokens among which the model seems to choose at each position: the lower, \
                      the less the text surprises it. The ratio is the candidate's perplexity over the reference's: \
                      1.01 is one percent worse." }
                dt { "RMS Δp" }
                dd { "How much the probability of the text's own next token typically moves, in percentage points." }
                dt { "Front" }
                dd { "The candidates for which no smaller candidate has as low a KLD. Which of them to take depends on the \
                      memory that you have." }
                dt { "Not distinguishable" }
                dd { "The interval of the difference contains zero: on other passages, the order might be reversed." }
                @if results.candidates.iter().any(|candidate| candidate.weights.is_some()) {
                    dt { "Relative error" }
                    dd { "The size of the weights' changes relative to the weights: the root of the sum of the changes' squares \
                          over the root of the sum of the weights' squares." }
                }
                @if tasks {
                    dt { "Chance" }
                    dd { "McNemar's exact test: the probability of a split between lost and won that is at least this uneven, \
                          if losing and winning a question were equally likely." }
                }
            }
            h3 { "What was compared" }
            (self.files())
        };
        Some(Section { id: "method", title: "How it was measured".into(), body })
    }

    fn files(&self) -> Markup {
        let results = self.results;
        let row = |what: &str, file: &File| {
            html! {
                tr {
                    td { (what) }
                    td.path { (plain(&file.path)) small { (file.quantization.as_deref().map(plain).unwrap_or_default()) } }
                    td.n { (units::bytes(file.bytes)) }
                    td.hash { (plain(file.blake3.as_deref().unwrap_or("not computed"))) }
                }
            }
        };
        html! {
            (scroll("Models", html! {
                table {
                    thead { tr { th scope="col" { "" } th scope="col" { "File" } th.n scope="col" { "Size" } th scope="col" { "BLAKE3" } } }
                    tbody {
                        (row(if results.reference.trace_k.is_some() { "Reference (trace)" } else { "Reference" }, &results.reference.file))
                        @for (i, candidate) in results.candidates.iter().enumerate() {
                            (row(&format!("Candidate {}", i + 1), &candidate.file))
                        }
                    }
                }
            }))
            @if !results.slices.is_empty() || !results.tasks.is_empty() {
                (scroll("Texts and tasks", html! {
                    table {
                        thead { tr {
                            th scope="col" { "Text or task" } th scope="col" { "File" } th.n scope="col" { "Tokens" }
                            th.n scope="col" { "Windows" } th.n scope="col" { "Scored" }
                            th.n scope="col" { "Reference's" br; "perplexity" } th scope="col" { "BLAKE3" }
                        } }
                        tbody {
                            @for (index, slice) in results.slices.iter().enumerate() { tr {
                                td.path { (plain(&slice.name)) }
                                td.path { (plain(&slice.path)) }
                                td.n { (wording::thousands(slice.tokens)) }
                                td.n { (wording::thousands(slice.windows)) }
                                td.n { (wording::thousands(slice.scored)) }
                                (optional(results.reference.slices.get(index).copied().flatten().map(|of| wording::estimate(&of))))
                                td.hash { (plain(&slice.blake3)) }
                            } }
                            @for task in &results.tasks { tr {
                                td.path { (plain(&task.name)) }
                                td.path { (plain(&task.path)) }
                                td.n colspan="4" { (wording::thousands(task.questions)) " questions" }
                                td.hash { (plain(&task.blake3)) }
                            } }
                        }
                    }
                }))
            }
            @if let Some(perplexity) = &results.reference.perplexity {
                p { "The reference's perplexity over all texts: " (wording::estimate(perplexity).line()) "." }
            }
        }
    }
}

/// Puts wide content into a frame that scrolls.
fn scroll(name: &str, inside: Markup) -> Markup {
    html! { div.scroll role="region" aria-label=(name) tabindex="0" { (inside) } }
}

/// A table below a drawing of the same numbers. It is folded if it has many rows.
fn folded(rows: usize, table: Markup) -> Markup {
    html! { @if rows > MOST_ROWS_OPEN { details { summary { "The numbers" } (table) } } @else { (table) } }
}

fn figure(chart: Markup) -> Markup {
    html! { figure { (chart) } }
}

fn cell(shown: Shown) -> Markup {
    html! { td.n { (shown.value) @if let Some(interval) = shown.interval { small { (interval) } } } }
}

fn optional(shown: Option<Shown>) -> Markup {
    shown.map_or_else(|| html! { td {} }, cell)
}

/// Returns the text of a passage. Line breaks stay; all other control characters are escaped.
fn passage(text: &str) -> std::borrow::Cow<'_, str> {
    crate::base::display::printable_lines(text)
}

/// Shortens a name for a column or a line of its own.
fn short(name: &str) -> String {
    wording::shortened(&plain(name), LONGEST_NAME)
}

/// Returns an identifier such as `accuracy_normalised` as words.
fn words(name: &str) -> String {
    plain(name).replace('_', " ")
}

/// Returns all tokens that the reference or the candidate expects, in this order, and the text's own.
fn guesses(change: &Change) -> Vec<&Guess> {
    let mut guesses: Vec<&Guess> = Vec::new();
    for guess in change.reference.iter().chain(&change.candidate).chain([&change.right]) {
        match guesses.iter_mut().find(|known| known.text == guess.text) {
            // A trace may know its probability in one of these lists and not in another.
            Some(known) if known.reference.is_none() => *known = guess,
            Some(_) => {}
            None => guesses.push(guess),
        }
    }
    guesses
}

/// Returns a candidate's errors by layer and role; `None` if no tensor is in a layer.
fn heat(candidate: &Candidate) -> Option<Heat> {
    let tensors = &candidate.weights.as_ref()?.tensors;
    let mut layers: Vec<u32> = tensors.iter().filter_map(|tensor| tensor.layer).collect();
    layers.sort_unstable();
    layers.dedup();
    let mut roles: Vec<&str> = Vec::new();
    // Roles without any error, such as norms, would be empty rows.
    for tensor in tensors.iter().filter(|tensor| tensor.layer.is_some() && tensor.error.relative != 0.0) {
        if !roles.contains(&tensor.role.as_str()) {
            roles.push(&tensor.role);
        }
    }
    if layers.len() > MOST_LAYERS || roles.is_empty() || roles.len() > MOST_ROLES {
        return None;
    }
    let mut errors = vec![vec![None; layers.len()]; roles.len()];
    for tensor in tensors {
        let row = roles.iter().position(|role| *role == tensor.role);
        let column = tensor.layer.and_then(|layer| layers.binary_search(&layer).ok());
        if let (Some(row), Some(column)) = (row, column) {
            errors[row][column] = Some(tensor.error.relative);
        }
    }
    Some(Heat { layers, roles: roles.iter().map(|role| short(role)).collect(), errors })
}

/// Returns the tensor with the largest relative error, ignoring NaN.
fn worst(tensors: &[TensorError]) -> Option<&TensorError> {
    let known = tensors.iter().filter(|tensor| !tensor.error.relative.is_nan());
    known.max_by(|a, b| a.error.relative.total_cmp(&b.error.relative))
}

fn heat_table(map: &Heat) -> Markup {
    scroll(
        "Relative error by layer",
        html! {
            table {
                thead { tr { th scope="col" { "Layer" } @for role in &map.roles { th.n scope="col" { (role) } } } }
                tbody { @for (column, layer) in map.layers.iter().enumerate() { tr {
                    th scope="row" { (layer) }
                    @for row in &map.errors { td.n { @if let Some(error) = row[column] { (wording::number(error * 100.0)) } } }
                } } }
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use scraper::{ElementRef, Html, Selector};

    use super::*;
    use crate::report::sample;

    fn select<'a>(page: &'a Html, what: &str) -> Vec<ElementRef<'a>> {
        page.select(&Selector::parse(what).unwrap()).collect()
    }

    fn words_of(element: ElementRef) -> String {
        element.text().collect::<Vec<_>>().join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The words of all cells, headings of rows too.
    fn cells(page: &Html, inside: &str) -> BTreeSet<String> {
        let cells = select(page, &format!("{inside} td, {inside} th"));
        cells.into_iter().flat_map(|cell| cell.text().map(|text| text.trim().to_owned()).collect::<Vec<_>>()).collect()
    }

    fn headings(results: &Results) -> Vec<String> {
        select(&Html::parse_document(&html(results)), "h2").into_iter().map(words_of).collect()
    }

    #[test]
    fn a_page_is_whole_and_its_drawings_are_well_formed() {
        for (name, results) in sample::all() {
            let text = html(&results);
            let page = Html::parse_document(&text);
            assert!(page.errors.is_empty(), "{name}: {:?}", page.errors);
            assert!(!text.contains("<script"), "{name}");
            for drawing in text.split("<svg").skip(1).filter_map(|rest| rest.split_once("</svg>")) {
                let drawing = format!("<svg{}</svg>", drawing.0);
                let mut reader = quick_xml::Reader::from_str(&drawing);
                reader.config_mut().check_end_names = true;
                loop {
                    match reader.read_event().unwrap_or_else(|error| panic!("{name}: {error}: {drawing}")) {
                        quick_xml::events::Event::Eof => break,
                        quick_xml::events::Event::Start(tag) | quick_xml::events::Event::Empty(tag) => {
                            tag.attributes().for_each(|attribute| drop(attribute.unwrap()));
                        }
                        _ => {}
                    }
                }
                assert!(drawing.contains("role=\"img\"") && drawing.contains("<title>") && drawing.contains("<desc>"));
                assert!(!drawing.contains("NaN") && !drawing.contains("inf\""), "{name}: {drawing}");
            }
        }
    }

    #[test]
    fn nothing_is_fetched_and_nothing_runs() {
        let page = Html::parse_document(&html(&sample::hostile()));
        for what in ["script", "link", "img", "iframe", "object", "[src]", "[onclick]", "[onerror]", "a[href^=http]"] {
            assert!(select(&page, what).is_empty(), "{what}");
        }
        let text = html(&sample::hostile());
        assert!(!text.contains("url(") && !text.contains("@import"));
        // Shown, and as nothing but text.
        assert!(text.contains("&lt;script&gt;alert(1)") && text.contains("\\u{202e}"));
        assert!(!text.chars().any(|c| c != '\n' && crate::base::display::is_unprintable(c)));
    }

    #[test]
    fn the_table_has_every_number_with_its_interval() {
        let results = sample::results(8);
        let page = Html::parse_document(&html(&results));
        let cells = cells(&page, "#candidates");
        for candidate in &results.candidates {
            let scores = candidate.overall.unwrap();
            assert!(cells.contains(&units::bytes(candidate.file.bytes)));
            let shown = [scores.kld, scores.perplexity, scores.perplexity_ratio, scores.kld_median, scores.kld_90]
                .iter()
                .chain([&scores.kld_99, &scores.kld_999, &scores.kld_max])
                .map(wording::estimate)
                .chain([scores.same_top, scores.top5_overlap, scores.rms_dp].iter().map(wording::percent))
                .collect::<Vec<_>>();
            for Shown { value, interval } in shown {
                assert!(cells.contains(&value), "{value}");
                assert!(interval.is_none_or(|interval| cells.contains(&interval)));
            }
        }
        assert_eq!(select(&page, "#candidates table:first-of-type .front").len(), 2 * 8);
    }

    #[test]
    fn tables_have_the_numbers_that_drawings_show() {
        let results = sample::results(8);
        let page = Html::parse_document(&html(&results));
        let [positions, distribution, texts, weights, tasks] =
            ["#positions", "#distribution", "#texts", "#weights", "#tasks"].map(|id| cells(&page, id));
        let candidate = &results.candidates[0];
        for stretch in &candidate.positions {
            assert!(positions.contains(&wording::estimate(&stretch.kld).value));
        }
        for count in &candidate.histogram.as_ref().unwrap().counts {
            assert!(distribution.contains(&wording::thousands(*count)));
        }
        for scores in candidate.slices.iter().flatten() {
            assert!(texts.contains(&wording::estimate(&scores.kld).value));
        }
        for tensor in
            candidate.weights.as_ref().unwrap().tensors.iter().filter(|t| t.layer.is_some() && t.role != "norm")
        {
            assert!(weights.contains(&wording::number(tensor.error.relative * 100.0)), "{}", tensor.name);
        }
        let scores = candidate.tasks[0].as_ref().unwrap();
        assert!(tasks.contains(&wording::percent(&scores.scores[0].1).value));
        assert!(tasks.contains(&scores.against_reference.unwrap().lost.to_string()));
    }

    #[test]
    fn sections_without_data_are_left_out() {
        assert_eq!(headings(&Results::default()), ["How it was measured"]);
        assert_eq!(headings(&sample::begun()), ["The candidates", "What failed", "How it was measured"]);
        let traced = headings(&sample::traced());
        assert!(!traced.contains(&"Tasks".to_owned()) && !traced.contains(&"Where the weights differ".to_owned()));
        let all = [
            "The candidates",
            "Size against loss",
            "Along the text",
            "How many tokens are how far off",
            "By text",
            "Who beats whom",
            "Tasks",
            "Where the weights differ",
            "The most changed passages",
            "How it was measured",
        ];
        assert_eq!(headings(&sample::results(8)), all);
    }

    #[test]
    fn a_changed_passage_shows_what_both_expected_and_marks_what_came() {
        let page = Html::parse_document(&html(&sample::results(1)));
        let change = select(&page, ".change")[1];
        assert_eq!(change.select(&Selector::parse("mark").unwrap()).next().unwrap().inner_html(), "桥");
        let rows: Vec<String> = change.select(&Selector::parse("tbody tr").unwrap()).map(words_of).collect();
        assert_eq!(rows[0], "桥 (the text's) 71.00 % 24.00 %");
        assert_eq!(rows[3], "水 1.00 % 31.00 %");
        assert_eq!(rows.len(), 4);
        assert!(words_of(select(&page, ".passage")[1]).contains("主席问大家"));
    }

    #[test]
    fn the_matrix_says_who_is_nearer_from_both_sides() {
        let mut results = sample::results(3);
        results.pairs[0].verdict = crate::report::results::Verdict::NotDistinguishable;
        let page = Html::parse_document(&html(&results));
        let rows: Vec<String> = select(&page, ".matrix tbody tr").into_iter().map(words_of).collect();
        let signs = |row: &str| row.chars().filter(|c| "▲▽≈".contains(*c)).collect::<String>();
        assert_eq!(rows.iter().map(|row| signs(row)).collect::<Vec<_>>(), ["≈▽", "≈▽", "▲▲"]);
    }

    #[test]
    fn a_failure_is_told_in_its_own_words() {
        let page = Html::parse_document(&html(&sample::begun()));
        assert!(words_of(select(&page, "#failures")[0]).contains("it needs 40 GB, and 32 GB are there"));
        let rows: Vec<String> = select(&page, "#candidates tbody tr").into_iter().map(words_of).collect();
        assert!(rows[0].contains("GB failed") && rows[1].contains("GB not measured yet"), "{rows:?}");
    }

    #[test]
    fn how_it_was_measured_is_there_to_be_done_again() {
        let results = sample::results(8);
        let method = words_of(select(&Html::parse_document(&html(&results)), "#method")[0]);
        assert!(method.contains("nibble compare models/Yi-34B-Chat-BF16.gguf 'models/*.gguf' --text en=texts/en.txt"));
        for candidate in &results.candidates {
            assert!(method.contains(candidate.file.blake3.as_ref().unwrap()));
        }
        assert!(method.contains("1024 tokens") && method.contains("first 256") && method.contains("seed 1"));
        assert!(method.contains("文本/中文.txt") && method.contains(&results.slices[1].blake3));
    }

    #[test]
    fn seventeen_recipes_made_in_two_ways_stay_under_400_kb_and_have_labels_of_their_own() {
        let results = sample::results(34);
        let text = html(&results);
        assert!(text.len() < 400_000, "{}", text.len());
        assert_eq!(text, html(&results.clone()));
        let page = Html::parse_document(&text);
        let drawn = select(&page, "#front svg > circle > title");
        let names: BTreeSet<String> = drawn.into_iter().map(|title| words_of(title)).collect();
        assert_eq!(names.len(), 34);
    }

    #[test]
    fn labels_keep_out_of_each_others_way() {
        for count in [2, 8, 17, 34] {
            let page = Html::parse_document(&html(&sample::results(count)));
            let mut places: Vec<(f64, f64, f64, f64)> = Vec::new();
            for label in select(&page, "#front svg > text") {
                let number = |name: &str| label.value().attr(name).unwrap().parse::<f64>().unwrap();
                let (x, y, letters) = (number("x"), number("y"), number("font-size"));
                let width = unicode_width::UnicodeWidthStr::width(words_of(label).as_str()) as f64 * letters * 0.56;
                let left = match label.value().attr("text-anchor").unwrap() {
                    "start" => x,
                    "middle" => x - width / 2.0,
                    _ => x - width,
                };
                places.push((left, left + width, y - letters * 0.5, y + letters * 0.5));
            }
            assert!(places.len() > count, "{count}: axes have words too");
            for (n, a) in places.iter().enumerate() {
                assert!(a.0 >= 0.0 && a.1 <= 1280.0, "{count}: {a:?} is cut");
                for b in &places[n + 1..] {
                    let meet = a.0 < b.1 && b.0 < a.1 && a.2 < b.3 && b.2 < a.3;
                    assert!(!meet, "{count}: {a:?} and {b:?}");
                }
            }
        }
    }

    #[test]
    #[ignore = "writes pages to look at, to the folder NIBBLE_PAGES"]
    fn writes_pages() {
        let folder = std::path::PathBuf::from(std::env::var_os("NIBBLE_PAGES").unwrap());
        for (name, results) in sample::all() {
            std::fs::write(folder.join(name).with_extension("html"), html(&results)).unwrap();
        }
    }
}
