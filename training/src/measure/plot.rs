//! Small plots as inline SVG: scatter and line charts, and ternary maps. Colours are CSS classes of
//! the page (`s0`, `s1` …), so that one drawing serves light and dark pages.

use std::fmt::Write;

/// Colours of series that the page defines.
pub const COLOURS: usize = 8;

/// Text made safe for HTML and attribute values.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A number for display: four significant digits, no trailing zeros.
pub fn number(x: f64) -> String {
    if x == 0.0 || !x.is_finite() {
        return format!("{x}");
    }
    let digits = 3 - x.abs().log10().floor() as i32;
    if !(-3..=7).contains(&digits) {
        return format!("{x:.2e}");
    }
    let text = format!("{:.*}", digits.max(0) as usize, x);
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    } else {
        text
    }
}

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// A line through the points.
    Line,
    /// A dot at each point.
    Dots,
    /// Both.
    LineAndDots,
}

/// A point with its tooltip.
#[derive(Debug, Clone, PartialEq)]
pub struct Dot {
    /// Abscissa.
    pub x: f64,
    /// Ordinate.
    pub y: f64,
    /// Text of the tooltip; none when empty.
    pub label: String,
}

/// One series of a chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Class of its colour, modulo [`COLOURS`].
    pub colour: usize,
    /// How it is drawn.
    pub mark: Mark,
    /// Its points; those that are not finite are left out.
    pub points: Vec<Dot>,
}

const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 46.0;

/// A linear axis: data range and pixel range.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// Covers the values with a margin of 5 %.
    fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Option<Self> {
        let (low, high) = values
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        if !(low.is_finite() && high.is_finite()) {
            return None;
        }
        let room = if high > low { 0.05 * (high - low) } else { 0.5 * low.abs().max(1.0) };
        Some(Self { low: low - room, high: high + room, from, to })
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// Four to eight round numbers within the range.
    fn ticks(&self) -> Vec<f64> {
        let rough = (self.high - self.low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0];
        let step = power * steps.into_iter().find(|s| s * power >= rough).unwrap_or(10.0);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step).floor() as i64;
        (first..=last).map(|k| k as f64 * step).collect()
    }
}

/// A chart of series over two linear axes; `None` when no point is finite.
pub fn chart(series: &[Series], x_title: &str, y_title: &str) -> Option<String> {
    let kept: Vec<(&Series, Vec<&Dot>)> = series
        .iter()
        .map(|s| (s, s.points.iter().filter(|p| p.x.is_finite() && p.y.is_finite()).collect()))
        .collect();
    let dots = || kept.iter().flat_map(|(_, points)| points.iter());
    let x = Axis::over(dots().map(|p| p.x), LEFT, WIDTH - RIGHT)?;
    let y = Axis::over(dots().map(|p| p.y), HEIGHT - BOTTOM, TOP)?;
    let mut svg = open(x_title, y_title);
    frame(&mut svg, &x, &y, x_title, y_title);
    for (series, points) in &kept {
        let colour = series.colour % COLOURS;
        if series.mark != Mark::Dots {
            let path: Vec<String> =
                points.iter().map(|p| format!("{:.1},{:.1}", x.at(p.x), y.at(p.y))).collect();
            let path = path.join(" ");
            let _ = write!(svg, r#"<polyline class="line s{colour}" points="{path}"/>"#);
        }
        if series.mark != Mark::Line {
            for p in points {
                marker(&mut svg, colour, x.at(p.x), y.at(p.y), &p.label);
            }
        }
    }
    svg.push_str("</svg>");
    Some(svg)
}

fn open(x_title: &str, y_title: &str) -> String {
    let name = escape(&format!("{y_title} over {x_title}"));
    format!(r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">"#)
}

fn frame(svg: &mut String, x: &Axis, y: &Axis, x_title: &str, y_title: &str) {
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    for tick in x.ticks() {
        let (at, text) = (x.at(tick), number(tick));
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{at:.1}" x2="{at:.1}" y1="{TOP}" y2="{bottom}"/><text class="tick" x="{at:.1}" y="{:.1}" text-anchor="middle">{text}</text>"#,
            bottom + 16.0
        );
    }
    for tick in y.ticks() {
        let (at, text) = (y.at(tick), number(tick));
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1}" y2="{at:.1}"/><text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{text}</text>"#,
            LEFT - 6.0,
            at + 4.0
        );
    }
    let (x_title, y_title) = (escape(x_title), escape(y_title));
    let (middle_x, middle_y) = ((LEFT + right) / 2.0, (TOP + bottom) / 2.0);
    let _ = write!(
        svg,
        r#"<text class="title" x="{middle_x}" y="{:.1}" text-anchor="middle">{x_title}</text><text class="title" transform="translate(13 {middle_y}) rotate(-90)" text-anchor="middle">{y_title}</text>"#,
        HEIGHT - 8.0
    );
}

/// A marker whose shape depends on the colour, for readers who cannot tell the colours apart.
pub fn marker(svg: &mut String, colour: usize, x: f64, y: f64, label: &str) {
    let shape = match colour % 4 {
        0 => format!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="4""#),
        1 => format!(r#"<rect x="{:.1}" y="{:.1}" width="7" height="7""#, x - 3.5, y - 3.5),
        2 => {
            let (top, low, left, right) = (y - 4.5, y + 3.5, x - 4.5, x + 4.5);
            format!(r#"<path d="M{x:.1} {top:.1}L{right:.1} {low:.1}L{left:.1} {low:.1}Z""#)
        }
        _ => {
            let (top, low, left, right) = (y - 5.0, y + 5.0, x - 5.0, x + 5.0);
            format!(
                r#"<path d="M{x:.1} {top:.1}L{right:.1} {y:.1}L{x:.1} {low:.1}L{left:.1} {y:.1}Z""#
            )
        }
    };
    let tag = ["circle", "rect", "path", "path"][colour % 4];
    let tip =
        if label.is_empty() { String::new() } else { format!("<title>{}</title>", escape(label)) };
    let _ = write!(svg, r#"{shape} class="dot s{colour}">{tip}</{tag}>"#);
}

/// A triangle of preferences, each coloured by a value: `cells` are (μ of three, value). Dark is the
/// lowest of `scale`, bright the highest; `corners` name the vertices of μ₁ (top), μ₂ (left) and μ₃
/// (right). `None` when no value is finite.
pub fn ternary(
    cells: &[([f64; 3], f64)],
    (low, high): (f64, f64),
    corners: [&str; 3],
    title: &str,
) -> Option<String> {
    let finite = || cells.iter().filter(|(_, v)| v.is_finite());
    finite().next()?;
    let title = escape(title);
    let mut svg =
        format!(r#"<svg viewBox="0 0 340 350" role="img" aria-label="{title} over preferences">"#);
    let (side, left) = (240.0, 50.0);
    let height = side * 3f64.sqrt() / 2.0;
    // The number of grid steps along a side decides the size of a cell.
    let rows = ((8.0 * finite().count() as f64 + 1.0).sqrt() - 3.0) / 2.0;
    let radius = (side / rows.max(1.0) * 0.5).clamp(3.0, 24.0);
    let top = 24.0 + radius;
    for ([a, b, c], value) in finite() {
        let (x, y) = (left + side * (0.5 * a + c), top + height * (1.0 - a));
        let share = if high > low { (value - low) / (high - low) } else { 0.5 };
        let (colour, tip) = (ramp(share), number(*value));
        let at = [a, b, c].map(|w| number(*w)).join(", ");
        let _ = write!(
            svg,
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="{radius:.1}" fill="{colour}"><title>μ = ({at}): {tip}</title></circle>"#
        );
    }
    let [first, second, third] = corners.map(escape);
    let foot = top + height + radius.max(8.0) + 16.0;
    let _ = write!(
        svg,
        r#"<text class="title" x="{:.1}" y="16" text-anchor="middle">{first}</text><text class="title" x="{left}" y="{foot:.1}" text-anchor="middle">{second}</text><text class="title" x="{:.1}" y="{foot:.1}" text-anchor="middle">{third}</text>"#,
        left + side / 2.0,
        left + side
    );
    legend(&mut svg, low, high);
    svg.push_str("</svg>");
    Some(svg)
}

fn legend(svg: &mut String, low: f64, high: f64) {
    for i in 0..40 {
        let colour = ramp(f64::from(i) / 39.0);
        let x = 90 + 4 * i;
        let _ = write!(svg, r#"<rect x="{x}" y="330" width="4.2" height="10" fill="{colour}"/>"#);
    }
    let _ = write!(
        svg,
        r#"<text class="tick" x="84" y="339" text-anchor="end">{}</text><text class="tick" x="256" y="339">{}</text>"#,
        number(low),
        number(high)
    );
}

/// Dark blue over green to yellow: uniform in lightness, and readable without telling red from
/// green.
fn ramp(share: f64) -> String {
    const STOPS: [[f64; 3]; 5] = [
        [68.0, 1.0, 84.0],
        [59.0, 82.0, 139.0],
        [33.0, 145.0, 140.0],
        [94.0, 201.0, 98.0],
        [253.0, 231.0, 37.0],
    ];
    let at = share.clamp(0.0, 1.0) * (STOPS.len() - 1) as f64;
    let below = (at as usize).min(STOPS.len() - 2);
    let part = at - below as f64;
    let [r, g, b] = match STOPS.get(below..below + 2) {
        Some([from, to]) => {
            std::array::from_fn(|i| (from[i] + part * (to[i] - from[i])).round() as u8)
        }
        _ => [0; 3],
    };
    format!("rgb({r},{g},{b})")
}
