//! Charts of a comparison, as inline SVG. Their labels are text, a style sheet can change their colours, and they can
//! be read without colours.
//!
//! `plotters` draws the lines. This module adds what it lacks: a title and a description for screen readers, tooltips,
//! labels that do not overlap, and ticks for axes that span less than a power of ten. Drawings are twice as large as
//! they are shown, because plotters rounds to whole units.

use maud::{Markup, PreEscaped, html};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use unicode_width::UnicodeWidthStr;

use crate::report::results::{Estimate, Histogram, Results, Stretch};

use super::ranking::Ranking;
use super::wording;

/// Width of a drawing, in units.
const WIDTH: u32 = 1280;
/// Font size, in units.
const LETTERS: i32 = 27;
/// Approximate width of a terminal column, as a multiple of the font size.
const CELL: f64 = 0.6;
/// Names in drawings are cut to this many columns.
const NAME_CELLS: usize = 22;

// The style sheet has a second set of these for dark mode. It finds them by their value.
/// Important text and lines.
const INK: RGBColor = RGBColor(0x1f, 0x29, 0x33);
/// Less important text, axes, and candidates that are not on the front.
const FAINT: RGBColor = RGBColor(0x5f, 0x6b, 0x76);
/// Grid lines.
const GRID: RGBColor = RGBColor(0xe1, 0xe5, 0xe9);
/// Colours that colour-blind readers can tell apart, with enough contrast on white. Each goes with a mark of a
/// different shape.
const SERIES: [RGBColor; 6] = [
    RGBColor(0x00, 0x62, 0xa3),
    RGBColor(0xc2, 0x4a, 0x00),
    RGBColor(0x00, 0x77, 0x58),
    RGBColor(0x9d, 0x3f, 0x7b),
    RGBColor(0x86, 0x65, 0x00),
    RGBColor(0x43, 0x4d, 0x9e),
];
/// From small to large error. They get darker in one direction, so that they can be read in greyscale too.
const HEAT: [RGBColor; 7] = [
    RGBColor(0xf1, 0xf3, 0xd9),
    RGBColor(0xc9, 0xe0, 0xb4),
    RGBColor(0x86, 0xc5, 0xb3),
    RGBColor(0x45, 0xa0, 0xb5),
    RGBColor(0x2c, 0x76, 0xab),
    RGBColor(0x28, 0x4b, 0x92),
    RGBColor(0x1b, 0x20, 0x5f),
];

/// The most series that can be told apart in one drawing.
pub const MOST_SERIES: usize = SERIES.len();

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;

/// Tooltips: their places and texts.
type Spots = Vec<((i32, i32), String)>;

/// An axis. Logarithmic ones are linear in the decimal logarithm.
#[derive(Clone)]
struct Axis {
    from: f64,
    to: f64,
    logarithmic: bool,
    ticks: Vec<f64>,
}

impl Axis {
    /// Returns an axis that holds all finite values; `None` if there are none.
    fn linear(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let (low, high) = ends(values.into_iter().filter(|value| value.is_finite()))?;
        let margin = if high > low { (high - low) * 0.06 } else { high.abs().max(1.0) * 0.1 };
        let (from, to) = (low - margin, high + margin);
        Some(Self { from, to, logarithmic: false, ticks: even_ticks(from, to) })
    }

    /// Returns an axis that holds all values that have a logarithm; `None` if there are none.
    fn logarithmic(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let positive = values.into_iter().filter(|value| value.is_finite() && *value > 0.0).map(f64::log10);
        let (low, high) = ends(positive)?;
        let margin = ((high - low) * 0.06).max(0.08);
        let (from, to) = (low - margin, high + margin);
        Some(Self { from, to, logarithmic: true, ticks: powers(from, to) })
    }

    /// Returns an axis of rows, from the top down.
    fn rows(count: usize) -> Self {
        Self { from: count as f64 - 0.5, to: -0.5, logarithmic: false, ticks: Vec::new() }
    }

    /// Returns the position of a value in the axis's own units. Values beyond an end are at that end.
    fn at(&self, value: f64) -> Option<f64> {
        let at = match self.logarithmic {
            true if value > 0.0 => value.log10(),
            true => f64::NEG_INFINITY,
            false => value,
        };
        (!at.is_nan()).then(|| at.clamp(self.from.min(self.to), self.from.max(self.to)))
    }

    /// Like [`Axis::at`], but `None` for values that have no place on the axis.
    fn place(&self, value: f64) -> Option<f64> {
        let none = !value.is_finite() || (self.logarithmic && value <= 0.0);
        if none { None } else { self.at(value) }
    }

    fn label(&self, at: &f64) -> String {
        if self.logarithmic && *at < SMALLEST_WRITTEN_OUT && (at - at.round()).abs() < 1e-9 {
            return format!("10{}", superscript(at.round() as i32));
        }
        let value = if self.logarithmic { 10_f64.powf(*at) } else { *at };
        let step = if self.logarithmic { value / 10.0 } else { (self.to - self.from).abs() / 7.0 };
        let decimals = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
        let text = format!("{value:.decimals$}");
        match text.contains('.') {
            true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
            false => text,
        }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, at: &f64, (first, last): (i32, i32)) -> i32 {
        // A value far beyond the axis would overflow.
        let share = ((at - self.from) / (self.to - self.from)).clamp(-1.0, 2.0);
        first + (share * f64::from(last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.from..self.to
    }
}

impl ValueFormatter<f64> for Axis {
    fn format(at: &f64) -> String {
        // Not used: the mesh has a formatter that knows its axis.
        at.to_string()
    }
}

/// Decimal logarithm of the smallest number that an axis does not write as a power of ten: `0.0001`.
const SMALLEST_WRITTEN_OUT: f64 = -4.5;

/// Formats an exponent: `⁻⁷`.
fn superscript(n: i32) -> String {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    let digit = |c: char| c.to_digit(10).map_or('⁻', |digit| DIGITS[digit as usize]);
    n.to_string().chars().map(digit).collect()
}

fn ends(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |ends, value| match ends {
        None => Some((value, value)),
        Some((low, high)) => Some((low.min(value), high.max(value))),
    })
}

/// Returns a few round numbers.
fn even_ticks(from: f64, to: f64) -> Vec<f64> {
    let rough = (to - from) / 7.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|step| *step >= rough).unwrap_or(rough);
    (0..20).map(|n| ((from / step).ceil() + f64::from(n)) * step).take_while(|tick| *tick <= to).collect()
}

/// Returns the logarithms of 1, 2 and 5 times the powers of ten, or of the powers alone if there are many.
fn powers(from: f64, to: f64) -> Vec<f64> {
    let parts: &[f64] = match to - from {
        span if span < 0.75 => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
        span if span < 2.6 => &[1.0, 2.0, 5.0],
        _ => &[1.0],
    };
    let decades = from.floor() as i32..=to.ceil() as i32;
    let ticks = decades.flat_map(|decade| parts.iter().map(move |part| f64::from(decade) + part.log10()));
    ticks.filter(|tick| (from..=to).contains(tick)).collect()
}

/// Returns a drawing in the form in which the page includes it.
fn svg(height: u32, title: &str, description: &str, draw: impl FnOnce(&Area, &mut Spots) -> Drawn) -> Option<Markup> {
    let mut drawing = String::new();
    let mut spots = Spots::new();
    {
        let area = SVGBackend::with_string(&mut drawing, (WIDTH, height)).into_drawing_area();
        // A drawing that fails is left out. Its numbers are in the tables.
        draw(&area, &mut spots).ok()?;
        area.present().ok()?;
    }
    let inside = drawing.split_once('>')?.1.trim_end().strip_suffix("</svg>")?;
    // These attributes have their default values.
    let inside =
        inside.replace(" opacity=\"1\"", "").replace(" stroke=\"none\"", "").replace(" font-family=\"sans-serif\"", "");
    Some(html! {
        svg viewBox={ "0 0 " (WIDTH) " " (height) } role="img" xmlns="http://www.w3.org/2000/svg" {
            title { (title) }
            desc { (description) }
            (PreEscaped(inside))
            @for ((x, y), words) in &spots {
                circle cx=(x) cy=(y) r="18" fill="transparent" { title { (words) } }
            }
        }
    })
}

fn letters(color: RGBColor) -> TextStyle<'static> {
    // plotters divides by 1.24 when it writes the size.
    let font = ("sans-serif", f64::from(LETTERS) * 1.24).into_font();
    TextStyle { font, color: color.to_backend_color(), pos: Pos::new(HPos::Left, VPos::Top) }
}

fn anchored(color: RGBColor, h: HPos, v: VPos) -> TextStyle<'static> {
    letters(color).pos(Pos::new(h, v))
}

fn width_of(words: &str) -> i32 {
    (words.width() as f64 * f64::from(LETTERS) * CELL).ceil() as i32
}

/// Writes words at a place of the drawing.
fn write(area: &Area, words: &str, at: (i32, i32), style: TextStyle<'static>) -> Drawn {
    area.draw(&Text::new(words.to_owned(), at, style))?;
    Ok(())
}

/// The margins around the plot, in units.
struct Margins {
    top: i32,
    right: i32,
    left: i32,
}

/// Draws a plot's axes with their names.
fn plot<'a, 'b>(
    area: &'a Area<'b>,
    margins: &Margins,
    (x, y): (&Axis, &Axis),
    (x_name, y_name): (&str, &str),
) -> Result<Chart<'a, 'b>, Box<dyn std::error::Error>> {
    let mut chart = ChartBuilder::on(area)
        .margin_top(margins.top)
        .margin_right(margins.right)
        .x_label_area_size(84)
        .y_label_area_size(margins.left)
        .build_cartesian_2d(x.clone(), y.clone())?;
    chart
        .configure_mesh()
        .x_label_formatter(&|at| x.label(at))
        .y_label_formatter(&|at| y.label(at))
        .label_style(letters(FAINT))
        .axis_style(FAINT.stroke_width(2))
        .bold_line_style(GRID.stroke_width(2))
        .light_line_style(TRANSPARENT)
        .draw()?;
    let (_, height) = area.dim_in_pixel();
    let middle = (margins.left + WIDTH as i32 - margins.right) / 2;
    write(area, x_name, (middle, height as i32 - 6), anchored(FAINT, HPos::Center, VPos::Bottom))?;
    if !y_name.is_empty() {
        write(area, y_name, (8, margins.top - 22), anchored(FAINT, HPos::Left, VPos::Bottom))?;
    }
    Ok(chart)
}

/// Draws a mark with the shape and colour of a series.
fn mark(area: &Area, series: usize, (x, y): (i32, i32)) -> Drawn {
    let color = SERIES[series % SERIES.len()];
    let r = 9;
    match series % SERIES.len() {
        0 => area.draw(&Circle::new((x, y), r, color.filled()))?,
        1 => area.draw(&Polygon::new(vec![(x, y - r - 2), (x - r - 2, y + r), (x + r + 2, y + r)], color))?,
        2 => area.draw(&Rectangle::new([(x - r, y - r), (x + r, y + r)], color.filled()))?,
        3 => area.draw(&Polygon::new(vec![(x, y - r - 4), (x + r + 4, y), (x, y + r + 4), (x - r - 4, y)], color))?,
        4 => area.draw(&Circle::new((x, y), r, color.stroke_width(4)))?,
        _ => area.draw(&Polygon::new(vec![(x, y + r + 2), (x - r - 2, y - r), (x + r + 2, y - r)], color))?,
    }
    Ok(())
}

/// Draws the marks of the series with their names, side by side in as many lines as they need. Returns the height, in
/// units. Without an `area`, only measures.
fn legend(area: Option<&Area>, names: &[String], left: i32) -> Result<i32, Box<dyn std::error::Error>> {
    let (mut x, mut line) = (left, 0);
    for (series, name) in names.iter().enumerate() {
        let width = width_of(name) + 70;
        if x + width > WIDTH as i32 && x > left {
            (x, line) = (left, line + 1);
        }
        if let Some(area) = area {
            let y = 24 + line * 42;
            mark(area, series, (x + 12, y))?;
            write(area, name, (x + 32, y), anchored(INK, HPos::Left, VPos::Center))?;
        }
        x += width;
    }
    Ok((line + 1) * 42)
}

/// A rectangle of the drawing.
#[derive(Clone, Copy)]
struct Block {
    left: i32,
    top: i32,
    right: i32,
    bottom: i32,
}

impl Block {
    fn meets(&self, other: &Self) -> bool {
        self.left < other.right && other.left < self.right && self.top < other.bottom && other.top < self.bottom
    }

    fn around((x, y): (i32, i32), r: i32) -> Self {
        Self { left: x - r, top: y - r, right: x + r, bottom: y + r }
    }
}

/// Returns small rectangles all along a line.
fn along(line: &[(i32, i32)]) -> Vec<Block> {
    const STEP: i32 = 8;
    let mut places = Vec::new();
    for two in line.windows(2) {
        let ((x, y), (dx, dy)) = (two[0], (two[1].0 - two[0].0, two[1].1 - two[0].1));
        let steps = (dx.abs().max(dy.abs()) / STEP).max(1);
        places.extend((0..=steps).map(|n| Block::around((x + dx * n / steps, y + dy * n / steps), 2)));
    }
    places
}

/// Places labels beside their points so that they do not overlap.
struct Labels {
    room: Block,
    taken: Vec<Block>,
}

impl Labels {
    /// Writes the words at most `furthest` units from the point, with a line to the point if they are not next to it.
    /// Returns false if there was no room.
    fn write(
        &mut self,
        area: &Area,
        point: (i32, i32),
        furthest: f64,
        (words, color): (&str, RGBColor),
    ) -> Result<bool, Box<dyn std::error::Error>> {
        let (width, height) = (width_of(words), LETTERS + 6);
        // Try the upper right and the lower left first, because a falling curve leaves these free.
        const WAYS: [(f64, f64); 8] =
            [(0.7, -0.7), (-0.7, 0.7), (1.0, 0.0), (-1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (-0.7, -0.7), (0.7, 0.7)];
        for distance in [20.0, 44.0, 72.0, 104.0].into_iter().take_while(|distance| *distance <= furthest) {
            for (dx, dy) in WAYS {
                let (x, y) = (point.0 + (dx * distance) as i32, point.1 + (dy * distance) as i32);
                let left = if dx > 0.0 {
                    x
                } else if dx < 0.0 {
                    x - width
                } else {
                    x - width / 2
                };
                let block = Block { left, top: y - height / 2, right: left + width, bottom: y + height / 2 };
                let inside = block.left >= self.room.left
                    && block.right <= self.room.right
                    && block.top >= self.room.top
                    && block.bottom <= self.room.bottom;
                if !inside || self.taken.iter().any(|taken| taken.meets(&block)) {
                    continue;
                }
                if distance > 20.0 {
                    let end = (x.clamp(block.left, block.right), y);
                    area.draw(&PathElement::new(vec![point, end], FAINT.stroke_width(2)))?;
                }
                // Anchor the text at the side of its point, because the exact width of the letters is not known here.
                let (side, at) = match dx {
                    _ if dx > 0.0 => (HPos::Left, left),
                    _ if dx < 0.0 => (HPos::Right, block.right),
                    _ => (HPos::Center, x),
                };
                write(area, words, (at, y), anchored(color, side, VPos::Center))?;
                self.taken.push(block);
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Returns a number and the ends of its interval, if it has one.
fn reach(estimate: &Estimate) -> impl Iterator<Item = f64> {
    [estimate.value].into_iter().chain(estimate.interval.into_iter().flatten())
}

/// Draws size against mean KLD, and which candidates are on the front. Returns `None` if fewer than two can be drawn.
pub fn front(results: &Results, ranking: &Ranking) -> Option<Markup> {
    let points: Vec<(usize, f64, Estimate)> = ranking
        .measured
        .iter()
        .filter_map(|&i| Some((i, results.candidates[i].file.bytes as f64 / 1e9, results.candidates[i].overall?.kld)))
        .filter(|(_, _, kld)| kld.value.is_finite() && kld.value > 0.0)
        .collect();
    if points.len() < 2 {
        return None;
    }
    let x = Axis::linear(points.iter().map(|(_, size, _)| *size))?;
    let y = Axis::logarithmic(points.iter().flat_map(|(_, _, kld)| reach(kld)))?;
    let margins = Margins { top: 66, right: 24, left: 110 };
    let on_front = |i: usize| results.candidates[i].on_front;
    let description = "Each candidate is a point: the further down, the nearer to the reference, and the further left, \
                       the smaller the file. A line joins those that nothing smaller equals.";
    let height = 860;
    svg(height, "Size of the file against mean KLD", description, |area, spots| {
        let chart =
            plot(area, &margins, (&x, &y), ("Size of the file, GB", "Mean KLD, nats per token (lower is better)"))?;
        let pixel = |size: f64, kld: f64| Some(chart.backend_coord(&(x.at(size)?, y.at(kld)?)));
        let line: Vec<_> =
            points.iter().filter(|(i, ..)| on_front(*i)).filter_map(|(_, size, kld)| pixel(*size, kld.value)).collect();
        area.draw(&PathElement::new(line.clone(), SERIES[0].stroke_width(3)))?;
        let room = Block { left: margins.left, top: 8, right: WIDTH as i32 - 4, bottom: height as i32 - 90 };
        let mut labels = Labels { room, taken: along(&line) };
        for (i, size, kld) in &points {
            let Some(point) = pixel(*size, kld.value) else { continue };
            let color = if on_front(*i) { SERIES[0] } else { FAINT };
            if let Some([low, high]) = kld.interval
                && let (Some(low), Some(high)) = (pixel(*size, low), pixel(*size, high))
            {
                area.draw(&PathElement::new(vec![low, high], color.stroke_width(3)))?;
                labels.taken.push(Block { left: low.0 - 3, top: high.1, right: low.0 + 3, bottom: low.1 });
            }
            let style = if on_front(*i) { color.filled() } else { color.stroke_width(3) };
            area.draw(&Circle::new(point, 9, style))?;
            labels.taken.push(Block::around(point, 12));
            spots.push((point, format!("{}: {size:.2} GB, KLD {}", ranking.labels[*i], wording::estimate(kld).line())));
        }
        let few = points.len() <= 14;
        for wanted in [true, false] {
            for (i, size, kld) in points.iter().filter(|(i, ..)| on_front(*i) == wanted) {
                let Some(point) = pixel(*size, kld.value) else { continue };
                let color = if wanted { INK } else { FAINT };
                let name = wording::shortened(&ranking.labels[*i], NAME_CELLS);
                let number = (i + 1).to_string();
                // With many points, long lines to names would clutter the drawing.
                let (names, numbers) = if few { (104.0, 104.0) } else { (20.0, 72.0) };
                let named = (wanted || few) && labels.write(area, point, names, (&name, color))?;
                if !named {
                    labels.write(area, point, numbers, (&number, color))?;
                }
            }
        }
        Ok(())
    })
}

/// Returns whether [`front`] writes numbers instead of names.
pub fn front_has_numbers(ranking: &Ranking) -> bool {
    ranking.measured.len() > 14
}

/// Draws mean KLD along the window.
pub fn positions(results: &Results, ranking: &Ranking, chosen: &[usize]) -> Option<Markup> {
    let stretches = |i: usize| results.candidates[i].positions.as_slice();
    let all = || chosen.iter().flat_map(|&i| stretches(i));
    let x = Axis::linear(all().flat_map(|stretch| [f64::from(stretch.from), f64::from(stretch.to)]))?;
    let y = Axis::logarithmic(all().flat_map(|stretch| reach(&stretch.kld)))?;
    let series: Vec<(usize, Vec<(f64, f64)>)> = chosen
        .iter()
        .map(|&i| (i, stretches(i).iter().filter_map(|s| Some((middle(s), y.place(s.kld.value)?))).collect()))
        .collect();
    let description = "A line for each candidate shown: from the first scored token of a window to the last.";
    let names = names(ranking, chosen);
    let top = legend(None, &names, 8).ok()? + 70;
    svg(620 + top as u32, "KLD along the text", description, |area, spots| {
        let margins = Margins { top, right: 30, left: 110 };
        let axes = ("Place in the window, tokens", "Mean KLD, nats per token (lower is better)");
        let chart = plot(area, &margins, (&x, &y), axes)?;
        legend(Some(area), &names, 8)?;
        for (place, (i, points)) in series.iter().enumerate() {
            let color = SERIES[place % SERIES.len()];
            let y = &y;
            let band = |end: usize| {
                let ends = stretches(*i).iter().filter_map(move |s| Some((middle(s), y.at(s.kld.interval?[end])?)));
                ends.map(|(a, b)| chart.backend_coord(&(a, b))).collect::<Vec<_>>()
            };
            let (mut low, high) = (band(0), band(1));
            low.extend(high.into_iter().rev());
            if low.len() > 3 {
                area.draw(&Polygon::new(low, color.mix(0.15)))?;
            }
            let pixels: Vec<_> = points.iter().map(|point| chart.backend_coord(point)).collect();
            area.draw(&PathElement::new(pixels.clone(), color.stroke_width(4)))?;
            for (pixel, stretch) in pixels.iter().zip(stretches(*i)) {
                mark(area, place, *pixel)?;
                let (from, to, kld) = (stretch.from, stretch.to, wording::estimate(&stretch.kld).line());
                spots.push((*pixel, format!("{}, tokens {from} to {to}: KLD {kld}", ranking.labels[*i])));
            }
        }
        Ok(())
    })
}

fn middle(stretch: &Stretch) -> f64 {
    (f64::from(stretch.from) + f64::from(stretch.to)) / 2.0
}

fn names(ranking: &Ranking, chosen: &[usize]) -> Vec<String> {
    chosen.iter().map(|&i| wording::shortened(&ranking.labels[i], NAME_CELLS)).collect()
}

/// Draws the distribution of KLD.
pub fn histogram(results: &Results, ranking: &Ranking, chosen: &[usize]) -> Option<Markup> {
    let series: Vec<&Histogram> = chosen.iter().filter_map(|&i| results.candidates[i].histogram.as_ref()).collect();
    if series.len() != chosen.len() {
        return None;
    }
    let share = |histogram: &Histogram, count: u64| 100.0 * count as f64 / total(histogram).max(1) as f64;
    let edges = series.iter().flat_map(|h| [h.log10_from, h.log10_from + h.log10_step * h.counts.len() as f64]);
    let x = Axis::logarithmic(edges.map(|edge| 10_f64.powf(edge)))?;
    let highest = series.iter().flat_map(|h| h.counts.iter().map(|count| share(h, *count))).chain([0.0]);
    let mut y = Axis::linear(highest)?;
    y.from = 0.0;
    let description = "A line for each candidate shown: the share of the tokens at each KLD.";
    let names = names(ranking, chosen);
    let top = legend(None, &names, 8).ok()? + 70;
    svg(560 + top as u32, "How KLD is distributed", description, |area, _| {
        let margins = Margins { top, right: 30, left: 80 };
        let chart = plot(area, &margins, (&x, &y), ("KLD of a token, nats", "Share of the tokens, %"))?;
        legend(Some(area), &names, 8)?;
        for (place, histogram) in series.iter().enumerate() {
            let color = SERIES[place % SERIES.len()];
            let points: Vec<_> = (histogram.counts.iter().enumerate())
                .map(|(bin, count)| {
                    (histogram.log10_from + histogram.log10_step * (bin as f64 + 0.5), share(histogram, *count))
                })
                .filter(|(at, _)| at.is_finite())
                .map(|point| chart.backend_coord(&point))
                .collect();
            area.draw(&PathElement::new(points.clone(), color.stroke_width(4)))?;
            for (bin, point) in points.iter().enumerate() {
                // Every third point has a mark, at different points for each series.
                if bin % 3 == place % 3 && histogram.counts[bin] > 0 {
                    mark(area, place, *point)?;
                }
            }
        }
        Ok(())
    })
}

/// Returns the number of tokens in a histogram.
pub fn total(histogram: &Histogram) -> u64 {
    histogram.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
}

/// A row's name, and its estimate for each series.
pub type Row = (String, Vec<Option<Estimate>>);

/// What a drawing of rows shows, and how.
pub struct Measure<'a> {
    /// Its title.
    pub title: &'a str,
    /// The name of the axis.
    pub axis: &'a str,
    /// Whether it is logarithmic.
    pub logarithmic: bool,
    /// The value that all others are compared with, drawn as a line.
    pub line: Option<Estimate>,
}

/// Draws rows of numbers with their intervals, with a mark for each series.
pub fn rows(rows: &[Row], series: &[String], measure: &Measure) -> Option<Markup> {
    let estimates = rows.iter().flat_map(|(_, row)| row.iter().flatten()).chain(&measure.line);
    let values = estimates.flat_map(reach);
    if rows.is_empty() {
        return None;
    }
    let x = if measure.logarithmic { Axis::logarithmic(values) } else { Axis::linear(values) }?;
    let y = Axis::rows(rows.len());
    let names: Vec<String> = rows.iter().map(|(name, _)| wording::shortened(name, NAME_CELLS)).collect();
    let left = names.iter().map(|name| width_of(name)).max().unwrap_or(0) + 24;
    let series: Vec<String> = series.iter().map(|name| wording::shortened(name, NAME_CELLS)).collect();
    let top = if series.len() > 1 { legend(None, &series, 8).ok()? + 16 } else { 10 };
    let row_height = (22 + 20 * series.len() as i32).max(44);
    let height = top + rows.len() as i32 * row_height + 84;
    svg(u32::try_from(height).ok()?, measure.title, "A row for each candidate, smallest file first.", |area, spots| {
        let margins = Margins { top, right: 40, left };
        let chart = plot(area, &margins, (&x, &y), (measure.axis, ""))?;
        if series.len() > 1 {
            legend(Some(area), &series, 8)?;
        }
        if let Some(at) = measure.line.and_then(|line| x.place(line.value)) {
            let (x, _) = chart.backend_coord(&(at, 0.0));
            area.draw(&PathElement::new(vec![(x, top), (x, height - 84)], INK.stroke_width(3)))?;
        }
        for (place, (name, (label, estimates))) in names.iter().zip(rows).enumerate() {
            let (_, y) = chart.backend_coord(&(x.from, place as f64));
            write(area, name, (left - 14, y), anchored(INK, HPos::Right, VPos::Center))?;
            for (series, estimate) in estimates.iter().enumerate().take(MOST_SERIES) {
                let Some((estimate, at)) = estimate.and_then(|estimate| Some((estimate, x.place(estimate.value)?)))
                else {
                    continue;
                };
                let shift = (2 * series as i32 + 1 - estimates.len().min(MOST_SERIES) as i32) * 10;
                let pixel = |at: f64| (chart.backend_coord(&(at, 0.0)).0, y + shift);
                if let Some([low, high]) = estimate.interval
                    && let (Some(low), Some(high)) = (x.at(low), x.at(high))
                {
                    let color = SERIES[series % SERIES.len()];
                    area.draw(&PathElement::new(vec![pixel(low), pixel(high)], color.stroke_width(4)))?;
                }
                mark(area, series, pixel(at))?;
                spots.push((pixel(at), format!("{label}: {}", wording::estimate(&estimate).line())));
            }
        }
        Ok(())
    })
}

/// Relative errors by layer and role.
pub struct Heat {
    /// The layers, from left to right.
    pub layers: Vec<u32>,
    /// The roles, from top to bottom.
    pub roles: Vec<String>,
    /// Relative error by role and layer; `None` if there is no such tensor.
    pub errors: Vec<Vec<Option<f64>>>,
}

impl Heat {
    fn values(&self) -> impl Iterator<Item = f64> {
        self.errors.iter().flatten().flatten().copied().filter(|error| error.is_finite() && *error > 0.0)
    }
}

/// Returns the smallest and the largest error of all maps, so that they use the same colours.
pub fn heat_ends(maps: &[Heat]) -> Option<(f64, f64)> {
    ends(maps.iter().flat_map(Heat::values))
}

/// Returns the error at which each colour begins.
fn heat_edges((low, high): (f64, f64)) -> [f64; HEAT.len()] {
    std::array::from_fn(|n| low * (high / low).powf(n as f64 / HEAT.len() as f64))
}

/// Draws weight errors by layer and role. Neighbours of the same colour are one rectangle.
pub fn heat(map: &Heat, ends: (f64, f64), title: &str) -> Option<Markup> {
    const ROW: i32 = 40;
    let left = map.roles.iter().map(|role| width_of(&wording::shortened(role, 16))).max()? + 20;
    let columns = map.layers.len() as f64;
    let edges = heat_edges(ends);
    let color = |error: f64| match edges.iter().rposition(|edge| error >= edge * (1.0 - 1e-12)) {
        _ if error == 0.0 => GRID,
        _ if error.is_nan() => INK,
        level => HEAT[level.unwrap_or(0)],
    };
    let height = map.roles.len() as i32 * ROW + 150;
    let description = "A row for each kind of tensor, a column for each layer: the darker, the larger the error.";
    svg(u32::try_from(height).ok()?, title, description, |area, _| {
        let room = f64::from(WIDTH as i32 - left - 20);
        let at = |column: usize| left + (room * column as f64 / columns) as i32;
        for (row, (role, errors)) in map.roles.iter().zip(&map.errors).enumerate() {
            let top = row as i32 * ROW + 4;
            write(
                area,
                &wording::shortened(role, 16),
                (left - 12, top + ROW / 2 - 2),
                anchored(INK, HPos::Right, VPos::Center),
            )?;
            let colors: Vec<_> = errors.iter().map(|error| error.map(color)).collect();
            let mut from = 0;
            for to in 1..=colors.len() {
                if to < colors.len() && colors[to] == colors[from] {
                    continue;
                }
                if let Some(color) = colors[from] {
                    area.draw(&Rectangle::new([(at(from), top), (at(to), top + ROW - 4)], color.filled()))?;
                }
                from = to;
            }
        }
        let below = map.roles.len() as i32 * ROW + 8;
        let step = (map.layers.len() / 12).max(1);
        let step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].into_iter().find(|nice| *nice >= step).unwrap_or(step);
        for column in (0..map.layers.len()).step_by(step) {
            let middle = (at(column) + at(column + 1)) / 2;
            write(area, &map.layers[column].to_string(), (middle, below), anchored(FAINT, HPos::Center, VPos::Top))?;
        }
        write(area, "layer", (left - 12, below), anchored(FAINT, HPos::Right, VPos::Top))?;
        let y = below + 62;
        let words = "Relative error, % from:";
        write(area, words, (8, y + 18), anchored(FAINT, HPos::Left, VPos::Center))?;
        for (level, (edge, color)) in edges.iter().zip(HEAT).enumerate() {
            let x = width_of(words) + 20 + level as i32 * 120;
            area.draw(&Rectangle::new([(x, y), (x + 36, y + 36)], color.filled()))?;
            write(area, &wording::number(edge * 100.0), (x + 44, y + 18), anchored(FAINT, HPos::Left, VPos::Center))?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_ticks_whatever_they_span() {
        let labels = |axis: Axis| axis.ticks.iter().map(|tick| axis.label(tick)).collect::<Vec<_>>();
        assert_eq!(labels(Axis::linear([11.9, 36.5]).unwrap()), ["15", "20", "25", "30", "35"]);
        assert_eq!(labels(Axis::logarithmic([0.0006, 0.3]).unwrap()), ["0.001", "0.01", "0.1"]);
        assert_eq!(labels(Axis::logarithmic([0.011, 0.019]).unwrap()), ["0.01", "0.015", "0.02"]);
        assert_eq!(labels(Axis::linear([-0.01, 0.01]).unwrap()), ["-0.01", "-0.005", "0", "0.005", "0.01"]);
        assert!(labels(Axis::linear([5.0]).unwrap()).len() > 2);
        assert!(Axis::linear([f64::NAN]).is_none() && Axis::logarithmic([0.0, -1.0, f64::INFINITY]).is_none());
    }

    #[test]
    fn what_has_no_place_on_an_axis_is_not_drawn_and_the_ends_of_intervals_are_cut() {
        let axis = Axis::logarithmic([0.001, 0.1]).unwrap();
        assert_eq!([axis.place(0.0), axis.place(f64::INFINITY), axis.place(f64::NAN)], [None; 3]);
        assert_eq!([axis.at(-1.0), axis.at(f64::INFINITY)], [Some(axis.from), Some(axis.to)]);
    }
}
