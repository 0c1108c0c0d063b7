//! Plots drawn as SVG: charts with two axes, and bars with their labels above them.
//!
//! plotters writes colours into the drawing, and a page that is light or dark by the reader's choice cannot have them
//! there. So everything is drawn in [`Ink`]s, colours that only stand for a name, and what is drawn is given the names as
//! classes in their place. `page.css` says what each looks like: its colour, and the dashes of a line.

use std::fmt::Display;

use plotters::prelude::{
    ChartBuilder, Circle, Cross, IntoDrawingArea, LineSeries, PathElement, Rectangle, SVGBackend, Text,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, IntoFont, RGBColor, ShapeStyle, TextStyle};
use unicode_width::UnicodeWidthChar;

use super::axis::Axis;
use crate::error::PerfError;

/// How many runs have a look of their own.
pub(super) const SERIES: usize = 12;

/// Width of every drawing in its own units; the page scales it.
pub(super) const WIDTH: u32 = 840;
const CHART_HEIGHT: u32 = 560;

/// Height of a letter with what is above and below it.
const FONT_SIZE: u32 = 32;

/// Of a bar with its label.
const BAR_HEIGHT: u32 = 84;
const BAR_THICKNESS: i32 = 30;
const MARGIN: i32 = 8;

/// Columns of a terminal that the label of a bar may have: so many fit beside the figure.
const LABEL_COLUMNS: usize = 30;
const FIGURE_COLUMNS: usize = 22;

/// Points of a line at most.
pub(super) const POINTS_MAX: usize = 600;

/// What something is drawn in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    /// Labels, and axes.
    Text,
    /// Lines behind what is shown.
    Grid,
    /// A limit that somebody has set.
    Bound,
    /// What has failed.
    Failure,
    /// A run, or one of the lines of the only run; modulo [`SERIES`].
    Series(usize),
}

impl Ink {
    /// The end of its class: `line-`, `fill-`.
    pub(super) fn name(self) -> String {
        match self {
            Self::Text => "text".into(),
            Self::Grid => "grid".into(),
            Self::Bound => "bound".into(),
            Self::Failure => "failure".into(),
            Self::Series(number) => format!("{}", number % SERIES),
        }
    }

    /// What stands for it in the drawing.
    fn color(self) -> RGBColor {
        let number = match self {
            Self::Text => 250,
            Self::Grid => 251,
            Self::Bound => 252,
            Self::Failure => 253,
            Self::Series(number) => (number % SERIES) as u8,
        };
        RGBColor(number, 82, 76)
    }

    fn line(self, width: u32) -> ShapeStyle {
        self.color().stroke_width(width)
    }

    fn all() -> impl Iterator<Item = Self> {
        let others = [Self::Text, Self::Grid, Self::Bound, Self::Failure];
        (0..SERIES).map(Self::Series).chain(others)
    }
}

/// A plot with two axes.
pub(super) struct Chart {
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) lines: Vec<Line>,
    pub(super) points: Vec<Points>,
    /// From one side to the other.
    pub(super) rules: Vec<Rule>,
}

/// Values connected in their order; nothing connects two that have a `None` between them.
pub(super) struct Line {
    pub(super) label: String,
    pub(super) ink: Ink,
    pub(super) values: Vec<Option<(f64, f64)>>,
    /// Each value has a dot.
    pub(super) dots: bool,
}

/// Values that are crosses.
pub(super) struct Points {
    pub(super) label: String,
    pub(super) values: Vec<(f64, f64)>,
}

/// One value everywhere.
pub(super) struct Rule {
    pub(super) label: String,
    pub(super) ink: Ink,
    pub(super) at: RuleAt,
}

/// Which axis a rule belongs to.
#[derive(Clone, Copy)]
pub(super) enum RuleAt {
    X(f64),
    Y(f64),
}

/// A value, or several that make up one, as a length.
pub(super) struct Bar {
    pub(super) label: String,
    /// The value in words.
    pub(super) figure: String,
    pub(super) parts: Vec<(f64, Ink)>,
}

/// The content of an `svg` element of [`WIDTH`] and the height that is returned.
pub(super) fn chart(chart: &Chart) -> Result<(String, u32), PerfError> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, CHART_HEIGHT)).into_drawing_area();
        let title = text(Ink::Text, HPos::Left, VPos::Top);
        root.draw(&Text::new(chart.y.title.clone(), (MARGIN, MARGIN), title))
            .map_err(failed)?;
        let (x, y) = (&chart.x, &chart.y);
        let mut context = ChartBuilder::on(&root)
            .margin_top(56)
            .margin_right(48)
            .margin_bottom(MARGIN)
            .x_label_area_size(88)
            .y_label_area_size(104)
            .build_cartesian_2d(x.clone(), y.clone())
            .map_err(failed)?;
        context
            .configure_mesh()
            .axis_style(Ink::Text.line(2))
            .bold_line_style(Ink::Grid.line(2))
            .label_style(text(Ink::Text, HPos::Left, VPos::Top))
            .set_all_tick_mark_size(8)
            .x_desc(x.title.clone())
            .draw()
            .map_err(failed)?;
        for rule in &chart.rules {
            let ends = match rule.at {
                RuleAt::X(value) => [(x.position(value), y.low), (x.position(value), y.high)],
                RuleAt::Y(value) => [(x.low, y.position(value)), (x.high, y.position(value))],
            };
            let line = PathElement::new(ends, rule.ink.line(4));
            context.draw_series([line]).map_err(failed)?;
        }
        let position = |(at, value): (f64, f64)| (x.position(at), y.position(value));
        for line in &chart.lines {
            let values = thinned(&line.values);
            for part in values.split(|value| value.is_none()) {
                let points: Vec<_> = part.iter().copied().flatten().map(position).collect();
                if line.dots || points.len() == 1 {
                    let dot = |&point: &(f64, f64)| Circle::new(point, 8, line.ink.color().filled());
                    context.draw_series(points.iter().map(dot)).map_err(failed)?;
                }
                if points.len() > 1 {
                    let width = line_width(line.ink);
                    context
                        .draw_series(LineSeries::new(points, line.ink.line(width)))
                        .map_err(failed)?;
                }
            }
        }
        for points in &chart.points {
            let cross = |value: &(f64, f64)| Cross::new(position(*value), 9, Ink::Failure.line(5));
            context
                .draw_series(thinned(&points.values).iter().map(cross))
                .map_err(failed)?;
        }
        root.present().map_err(failed)?;
    }
    Ok((content(&svg), CHART_HEIGHT))
}

/// As [`chart`], for bars below each other; the longest has the whole width.
pub(super) fn bars(bars: &[Bar]) -> Result<(String, u32), PerfError> {
    let height = MARGIN.unsigned_abs() * 2 + BAR_HEIGHT * u32::try_from(bars.len()).unwrap_or(u32::MAX);
    let sum = |bar: &Bar| {
        bar.parts
            .iter()
            .map(|(value, _)| super::axis::bounded(*value))
            .sum::<f64>()
    };
    let longest = bars.iter().map(sum).fold(f64::MIN_POSITIVE, f64::max);
    let (left, right) = (MARGIN, WIDTH as i32 - MARGIN);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        for (number, bar) in (0i32..).zip(bars) {
            let top = MARGIN + number * BAR_HEIGHT as i32;
            let bar_top = top + FONT_SIZE as i32 + 6;
            let label = Text::new(
                cut(&bar.label, LABEL_COLUMNS),
                (left, top),
                text(Ink::Text, HPos::Left, VPos::Top),
            );
            root.draw(&label).map_err(failed)?;
            let figure = Text::new(
                cut(&bar.figure, FIGURE_COLUMNS),
                (right, top),
                text(Ink::Text, HPos::Right, VPos::Top),
            );
            root.draw(&figure).map_err(failed)?;
            let mut before = 0.0;
            let place = |value: f64| left + (value / longest * f64::from(right - left)).round() as i32;
            for (value, ink) in &bar.parts {
                let from = place(before);
                before += super::axis::bounded(*value);
                // A gap between parts tells them apart where colours do not.
                let gap = if from > left { 4 } else { 0 };
                let to = place(before);
                if to > from + gap {
                    let corners = [(from + gap, bar_top), (to, bar_top + BAR_THICKNESS)];
                    root.draw(&Rectangle::new(corners, ink.color().filled()))
                        .map_err(failed)?;
                }
            }
            // Where the bar would begin, so that a value of nothing is seen as one.
            let foot = [(left, bar_top - 3), (left, bar_top + BAR_THICKNESS + 3)];
            root.draw(&PathElement::new(foot, Ink::Text.line(2))).map_err(failed)?;
        }
        root.present().map_err(failed)?;
    }
    Ok((content(&svg), height))
}

/// Runs with the colours of others have thicker lines.
pub(super) fn line_width(ink: Ink) -> u32 {
    match ink {
        Ink::Series(number) if number % SERIES >= SERIES / 2 => 8,
        Ink::Series(_) | Ink::Text | Ink::Grid | Ink::Bound | Ink::Failure => 5,
    }
}

fn text(ink: Ink, h: HPos, v: VPos) -> TextStyle<'static> {
    ("sans-serif", FONT_SIZE)
        .into_font()
        .color(&ink.color())
        .pos(Pos::new(h, v))
}

/// What is between the tags of the drawing, with classes for colours.
fn content(svg: &str) -> String {
    let inside = svg.split_once('>').map_or("", |(_, inside)| inside);
    let inside = inside.rsplit_once("</svg>").map_or(inside, |(inside, _)| inside);
    let mut content = inside
        .replace(" opacity=\"1\"", "")
        .replace(" font-family=\"sans-serif\"", "");
    for ink in Ink::all() {
        let RGBColor(red, green, blue) = ink.color();
        let color = format!("#{red:02X}{green:02X}{blue:02X}");
        for (attribute, class) in [("stroke", "line"), ("fill", "fill")] {
            content = content.replace(
                &format!(" {attribute}=\"{color}\""),
                &format!(" class=\"{class}-{}\"", ink.name()),
            );
        }
    }
    content
}

/// Every so manieth, the last one included.
fn thinned<T: Clone>(values: &[T]) -> Vec<T> {
    let every = values.len().div_ceil(POINTS_MAX).max(1);
    let mut kept: Vec<T> = values.iter().step_by(every).cloned().collect();
    if every > 1 {
        kept.pop();
        kept.extend(values.last().cloned());
    }
    kept
}

/// As much of a text as so many columns of a terminal hold.
fn cut(text: &str, columns: usize) -> String {
    let width = |c: char| c.width().unwrap_or(1);
    if text.chars().map(width).sum::<usize>() <= columns {
        return text.to_owned();
    }
    let mut used = 1;
    let fits = |c: &char| {
        used += width(*c);
        used <= columns
    };
    text.chars().take_while(fits).chain(['…']).collect()
}

fn failed(error: impl Display) -> PerfError {
    PerfError::Plot(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(values: Vec<Option<(f64, f64)>>) -> Chart {
        Chart {
            x: Axis::linear("seconds", [10.0]),
            y: Axis::linear("messages/s", [100.0]),
            lines: vec![Line {
                label: "a".into(),
                ink: Ink::Series(3),
                values,
                dots: false,
            }],
            points: Vec::new(),
            rules: vec![Rule {
                label: "bound".into(),
                ink: Ink::Bound,
                at: RuleAt::Y(50.0),
            }],
        }
    }

    #[test]
    fn everything_drawn_has_a_class_and_no_colour() {
        let (svg, _) = chart(&sample(vec![Some((0.0, 1.0)), Some((5.0, 90.0))])).unwrap();
        assert!(!svg.contains('#') && !svg.contains("<svg"), "{svg}");
        for class in ["line-3", "line-bound", "line-grid", "line-text", "fill-text"] {
            assert!(svg.contains(&format!("class=\"{class}\"")), "{class}: {svg}");
        }
    }

    #[test]
    fn a_gap_parts_a_line_and_a_value_alone_is_a_dot() {
        let at = |second: f64| Some((second, 10.0));
        let (svg, _) = chart(&sample(vec![at(0.0), at(1.0), None, at(3.0), at(4.0), None, at(6.0)])).unwrap();
        assert_eq!(svg.matches("<circle").count(), 1, "{svg}");
        let lines = svg
            .lines()
            .filter(|line| line.contains("<polyline") && line.contains("line-3"));
        assert_eq!(lines.count(), 2, "{svg}");
    }

    #[test]
    fn long_lines_are_thinned_and_keep_their_ends() {
        let kept = thinned(&(0..100_000).collect::<Vec<_>>());
        assert!(kept.len() <= POINTS_MAX);
        assert_eq!((kept.first(), kept.last()), (Some(&0), Some(&99_999)));
        assert_eq!(thinned(&[1, 2, 3]), [1, 2, 3]);
    }

    #[test]
    fn parts_of_a_bar_are_as_long_as_their_values() {
        let bar = |parts: &[f64]| Bar {
            label: "a".into(),
            figure: "b".into(),
            parts: parts
                .iter()
                .enumerate()
                .map(|(number, value)| (*value, Ink::Series(number)))
                .collect(),
        };
        let (svg, height) = bars(&[bar(&[1.0, 3.0]), bar(&[2.0]), bar(&[f64::NAN, -4.0])]).unwrap();
        let widths: Vec<i32> = svg
            .lines()
            .filter(|line| line.starts_with("<rect"))
            .map(|line| {
                line.split("width=\"")
                    .nth(1)
                    .unwrap()
                    .split('"')
                    .next()
                    .unwrap()
                    .parse()
                    .unwrap()
            })
            .collect();
        assert_eq!(widths, [206, 614, 412], "{svg}");
        assert_eq!(height, 3 * BAR_HEIGHT + 16);
    }

    #[test]
    fn labels_are_cut_by_the_room_they_take() {
        assert_eq!(cut("nginx", 5), "nginx");
        assert_eq!(cut("nginx 1.22", 6), "nginx…");
        assert_eq!(cut("日本語", 5), "日本…");
    }
}
