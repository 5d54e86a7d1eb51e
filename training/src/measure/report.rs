//! The report as one self-contained HTML file, light and dark: the metrics, the front, the maps
//! over preferences, curves of training and samples.

use super::{
    front::non_dominated,
    methods::Kind,
    plot::{COLOURS, Dot, Mark, Series, chart, escape, number, ternary},
    results::{FrontFile, MethodFront},
};
use std::fmt::Write;

/// A curve of training.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// What is drawn, e.g. `reward: brief`.
    pub title: String,
    /// Unit of the ordinate.
    pub unit: String,
    /// `(name, [(step, value)])`, one per backbone.
    pub series: Vec<(String, Vec<(f64, f64)>)>,
}

/// Responses to one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// The prompt, or an excerpt of it.
    pub prompt: String,
    /// `(preference or method, response)`.
    pub responses: Vec<(String, String)>,
}

/// Content of the report.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    pub title: String,
    /// Facts of the run as `(name, value)`: base, data, seeds, command, versions.
    pub facts: Vec<(String, String)>,
    /// The measured front.
    pub front: FrontFile,
    /// Curves of training, in the order to show.
    pub curves: Vec<Curve>,
    pub samples: Vec<Shown>,
}

impl Report {
    /// The page.
    pub fn html(&self) -> String {
        let title = escape(&self.title);
        let mut page = format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
             content=\"width=device-width,initial-scale=1\"><title>{title}</title><style>{STYLE}</style>\
             </head><body><main><h1>{title}</h1>"
        );
        self.facts(&mut page);
        self.metrics(&mut page);
        self.fronts(&mut page);
        self.maps(&mut page);
        self.curves(&mut page);
        self.samples(&mut page);
        page.push_str("</main></body></html>\n");
        page
    }

    fn facts(&self, page: &mut String) {
        let FrontFile { prompts, seeds, .. } = &self.front;
        let seeds: Vec<String> = seeds.iter().map(u64::to_string).collect();
        let own = [
            ("test prompts".to_string(), prompts.to_string()),
            ("seeds".to_string(), format!("{} ({})", seeds.len(), seeds.join(", "))),
        ];
        page.push_str("<dl>");
        for (name, value) in self.facts.iter().chain(&own) {
            let _ = write!(page, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
        }
        page.push_str("</dl>");
    }

    fn metrics(&self, page: &mut String) {
        let FrontFile { reference_point, controllability_ceiling: ceiling, methods, .. } =
            &self.front;
        let reference: Vec<String> = reference_point.iter().map(|r| number(*r)).collect();
        let _ = write!(
            page,
            "<h2>Metrics</h2><p>Rewards are in σ of the sampled responses of θ_sft, which is at 0. \
             Testing reward is the mean of Σ μᵢzᵢ, over the grid and by region of the simplex; \
             hypervolume is measured from −0.5 σ, in the rewards' own units ({}), where it is {} times \
             as large. Higher is better, but for sparsity and spacing. The grid allows a \
             controllability of at most {}, of which the share is in brackets. A \
             dominated point is nowhere better than θ_sft and somewhere worse. {}</p><div class=\"wide\"><table>\
             <thead><tr>",
            reference.join(", "),
            number(self.front.objectives.iter().map(|objective| objective.std).product()),
            number(*ceiling),
            self.meanings()
        );
        let titles = [
            "method",
            "testing reward",
            "raw",
            "corners",
            "edges",
            "interior",
            "hypervolume",
            "controllability",
            "front length",
            "sparsity",
            "spacing",
            "KL, nats",
            "R²",
            "dominated",
            "words",
        ];
        titles.iter().for_each(|title| {
            let _ = write!(page, "<th>{title}</th>");
        });
        page.push_str("</tr></thead><tbody>");
        for (index, method) in methods.iter().enumerate() {
            let cells = row(method, *ceiling);
            let _ = write!(page, "<tr><th>{}{}</th>", swatch(index), escape(&method.method));
            cells.iter().for_each(|cell| {
                let _ = write!(page, "<td>{cell}</td>");
            });
            page.push_str("</tr>");
        }
        page.push_str("</tbody></table></div>");
        self.comparison(page);
    }

    /// Gains, gaps, choices and verdicts, one line each.
    fn comparison(&self, page: &mut String) {
        let lines = self.front.comparison();
        if lines.is_empty() {
            return;
        }
        page.push_str("<h2>Comparison</h2><ul>");
        for line in lines {
            let _ = write!(page, "<li>{}</li>", escape(&line));
        }
        page.push_str("</ul>");
    }

    /// Descriptions of the methods.
    fn meanings(&self) -> String {
        let present = |kind: &Kind| self.front.methods.iter().find(|m| m.kind == Some(*kind));
        let lines = Kind::ALL.iter().filter_map(|kind| {
            let method = &present(kind)?.method;
            Some(format!("{method}: {}.", kind.meaning()))
        });
        escape(&lines.collect::<Vec<_>>().join(" "))
    }

    /// One projection for every pair of objectives; dominated points are dots off the line.
    fn fronts(&self, page: &mut String) {
        let objectives = &self.front.objectives;
        page.push_str("<h2>Front</h2>");
        legend(page, self.front.methods.iter().map(|m| m.method.as_str()));
        page.push_str("<div class=\"plots\">");
        for (i, x) in objectives.iter().enumerate() {
            for (j, y) in objectives.iter().enumerate().skip(i + 1) {
                let methods = self.front.methods.iter().enumerate();
                let series: Vec<Series> =
                    methods.flat_map(|(colour, m)| projection(m, [i, j], colour)).collect();
                let titles = [x, y].map(|o| format!("{} ({})", o.name, o.unit));
                let [x_title, y_title] = titles.each_ref().map(String::as_str);
                figure(
                    page,
                    chart(&series, x_title, y_title),
                    &format!("{} and {}", x.name, y.name),
                );
            }
        }
        page.push_str("</div>");
    }

    /// For three objectives a triangle per objective and method; for two, rewards over μ₁.
    fn maps(&self, page: &mut String) {
        let names: Vec<&str> = self.front.objectives.iter().map(|o| o.name.as_str()).collect();
        match names.as_slice() {
            [a, b] => {
                page.push_str("<h2>Rewards over the preference</h2>");
                legend(page, self.front.methods.iter().map(|m| m.method.as_str()));
                page.push_str("<div class=\"plots\">");
                for (j, name) in [a, b].into_iter().enumerate() {
                    let over = |(colour, m): (usize, &MethodFront)| Series {
                        colour,
                        mark: Mark::LineAndDots,
                        points: m
                            .points
                            .iter()
                            .filter_map(|p| {
                                let (x, y) = (*p.preference.first()?, *p.mean.get(j)?);
                                Some(Dot {
                                    x, y, label: format!("μ {}: {}", number(x), number(y))
                                })
                            })
                            .collect(),
                    };
                    let series: Vec<Series> =
                        self.front.methods.iter().enumerate().map(over).collect();
                    figure(page, chart(&series, &format!("μ of {a}"), name), name);
                }
                page.push_str("</div>");
            }
            [a, b, c] => {
                page.push_str(
                    "<h2>Rewards over the preference</h2><p>Each circle is one preference; a \
                     corner is all weight on its objective. An objective has one scale of colours \
                     for all methods.</p>",
                );
                let scale = |j: usize| {
                    let points = self.front.methods.iter().flat_map(|m| &m.points);
                    let values = points.filter_map(|p| p.mean.get(j).copied());
                    values
                        .filter(|v| v.is_finite())
                        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
                            (low.min(v), high.max(v))
                        })
                };
                for method in &self.front.methods {
                    let _ =
                        write!(page, "<h3>{}</h3><div class=\"plots\">", escape(&method.method));
                    for (j, name) in [a, b, c].into_iter().enumerate() {
                        let cells: Vec<([f64; 3], f64)> = method
                            .points
                            .iter()
                            .filter_map(|p| {
                                let at: [f64; 3] = p.preference.as_slice().try_into().ok()?;
                                Some((at, *p.mean.get(j)?))
                            })
                            .collect();
                        let map = ternary(&cells, scale(j), [a, b, c], name);
                        figure(page, map, &format!("reward: {name}"));
                    }
                    page.push_str("</div>");
                }
            }
            _ => {}
        }
    }

    fn curves(&self, page: &mut String) {
        if self.curves.is_empty() {
            return;
        }
        page.push_str("<h2>Training</h2><div class=\"plots\">");
        for curve in &self.curves {
            let drawn = |(colour, (_, points)): (usize, &(String, Vec<(f64, f64)>))| Series {
                colour,
                mark: Mark::Line,
                points: points.iter().map(|&(x, y)| Dot { x, y, label: String::new() }).collect(),
            };
            let series: Vec<Series> = curve.series.iter().enumerate().map(drawn).collect();
            let mut caption = String::new();
            legend(&mut caption, curve.series.iter().map(|(name, _)| name.as_str()));
            let svg = chart(&series, "step", &curve.unit);
            let shown = svg.unwrap_or_else(|| "<p>no finite values</p>".into());
            let title = escape(&curve.title);
            let _ =
                write!(page, "<figure>{shown}<figcaption>{title}{caption}</figcaption></figure>");
        }
        page.push_str("</div>");
    }

    fn samples(&self, page: &mut String) {
        if self.samples.is_empty() {
            return;
        }
        page.push_str("<h2>Samples</h2>");
        for Shown { prompt, responses } in &self.samples {
            let _ =
                write!(page, "<details open><summary>{}</summary><table><tbody>", escape(prompt));
            for (who, response) in responses {
                let _ = write!(
                    page,
                    "<tr><th>{}</th><td class=\"text\">{}</td></tr>",
                    escape(who),
                    escape(response)
                );
            }
            page.push_str("</tbody></table></details>");
        }
    }
}

/// The cells of a method's row; `ceiling` of controllability.
fn row(method: &MethodFront, ceiling: f64) -> Vec<String> {
    let m = &method.metrics;
    let optional = |x: Option<f64>| x.map_or("–".to_owned(), number);
    let words = method.points.iter().map(|p| p.text.words).sum::<f64>();
    let regions = &method.regions;
    vec![
        number(m.inner_product),
        number(method.raw_inner_product),
        optional(regions.corners),
        optional(regions.edges),
        optional(regions.interior),
        number(m.hypervolume),
        match ceiling > 0.0 {
            true => {
                format!("{} ({})", number(m.controllability), number(m.controllability / ceiling))
            }
            false => number(m.controllability),
        },
        format!("{} of {}", m.front_length, method.points.len()),
        number(m.sparsity),
        number(m.spacing),
        optional(method.most_kl()),
        optional(method.r_squared),
        method.dominated().to_string(),
        number(words / method.points.len().max(1) as f64),
    ]
}

/// A method's points in two objectives: all as dots, the non-dominated ones (in these two)
/// connected.
fn projection(method: &MethodFront, [i, j]: [usize; 2], colour: usize) -> Vec<Series> {
    let dots: Vec<Dot> = method
        .points
        .iter()
        .filter_map(|p| {
            let (x, y) = (*p.mean.get(i)?, *p.mean.get(j)?);
            let mu: Vec<String> = p.preference.iter().map(|w| number(*w)).collect();
            let (at_x, at_y) = (number(x), number(y));
            let label = format!("{} μ = ({}): {at_x}, {at_y}", method.method, mu.join(", "));
            Some(Dot { x, y, label })
        })
        .collect();
    let flat: Vec<Vec<f64>> = dots.iter().map(|d| vec![d.x, d.y]).collect();
    let best = non_dominated(&flat).unwrap_or_default();
    let mut line: Vec<Dot> = best.iter().filter_map(|&k| dots.get(k).cloned()).collect();
    line.sort_by(|a, b| a.x.total_cmp(&b.x));
    vec![
        Series { colour, mark: Mark::Line, points: line },
        Series { colour, mark: Mark::Dots, points: dots },
    ]
}

fn figure(page: &mut String, svg: Option<String>, caption: &str) {
    let shown = svg.unwrap_or_else(|| "<p>no finite values</p>".into());
    let _ = write!(page, "<figure>{shown}<figcaption>{}</figcaption></figure>", escape(caption));
}

fn swatch(colour: usize) -> String {
    let mut svg = String::from(r#"<svg class="swatch" viewBox="0 0 12 12" aria-hidden="true">"#);
    super::plot::marker(&mut svg, colour % COLOURS, 6.0, 6.0, "");
    svg + "</svg>"
}

fn legend<'a>(page: &mut String, names: impl Iterator<Item = &'a str>) {
    page.push_str("<ul class=\"legend\">");
    for (colour, name) in names.enumerate() {
        let _ = write!(page, "<li>{}{}</li>", swatch(colour), escape(name));
    }
    page.push_str("</ul>");
}

const STYLE: &str = include_str!("report.css");
