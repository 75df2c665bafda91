//! Reports as one page that needs nothing but itself: a verdict, the figures, the course of events, and charts
//! with the harm marked.

use std::fmt::Write as _;

use super::result::{Mark, Report, Verdict};

/// The size of a chart, in pixels.
const WIDTH: f64 = 860.0;
/// See [`WIDTH`].
const HEIGHT: f64 = 150.0;
/// Room for the numbers at the left.
const LEFT: f64 = 56.0;
/// One point of a chart sums so many milliseconds up.
const BIN_MS: u64 = 250;

const COLOURS: [&str; 8] =
    ["#2563eb", "#059669", "#d97706", "#7c3aed", "#db2777", "#0891b2", "#65a30d", "#475569"];

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:940px;margin:2em auto;padding:0 1em;color:#1e293b}\
h1{font-size:1.5em}h2{margin:2em 0 0;font-size:1.2em}h3{font-size:.95em;margin:1.2em 0 .2em}\
.passed{color:#059669}.failed{color:#dc2626}.missed{color:#d97706}\
table{border-collapse:collapse;margin:.6em 0}td,th{padding:.15em .9em .15em 0;text-align:left;vertical-align:top}\
td.n{text-align:right;font-variant-numeric:tabular-nums}svg{background:#f8fafc;border-radius:6px}\
.key span{margin-right:1.2em}.harm{color:#dc2626}";

/// All reports on one page.
pub fn page(reports: &[Report]) -> String {
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>rswarm drills</title><style>{STYLE}</style>\n\
         <h1>rswarm drills</h1>\n"
    );
    let passed = reports.iter().filter(|report| report.passed()).count();
    let _ = writeln!(html, "<p>{passed} of {} promises kept.</p><table>", reports.len());
    for report in reports {
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td><a href=\"#{1}\">{1}</a></td><td>{2}</td></tr>",
            verdict(report),
            escaped(report.drill),
            escaped(report.promise)
        );
    }
    html.push_str("</table>\n");
    reports.iter().for_each(|report| section(report, &mut html));
    html.push_str("</html>\n");
    html
}

fn verdict(report: &Report) -> &'static str {
    if report.passed() { "<b class=\"passed\">passed</b>" } else { "<b class=\"failed\">failed</b>" }
}

fn section(report: &Report, html: &mut String) {
    let _ = writeln!(
        html,
        "<h2 id=\"{0}\">{0}: {1}</h2><p>{2}</p>",
        escaped(report.drill),
        verdict(report),
        escaped(report.promise)
    );
    if let Verdict::Failed(reasons) = &report.verdict {
        html.push_str("<ul class=\"failed\">");
        reasons.iter().for_each(|reason| {
            let _ = write!(html, "<li>{}</li>", escaped(reason));
        });
        html.push_str("</ul>\n");
    }
    html.push_str("<table>");
    for line in &report.lines {
        let target = match (line.target, line.met()) {
            (Some(target), Some(true)) => format!("at most {target}"),
            (Some(target), _) => format!("<span class=\"missed\">at most {target}: missed</span>"),
            (None, _) => String::new(),
        };
        let value = (line.value * 100.0).round() / 100.0;
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td class=\"n\">{value}</td><td>{}</td><td>{target}</td></tr>",
            escaped(&line.goal),
            line.unit
        );
    }
    html.push_str("</table>\n");
    charts(report, html);
    html.push_str("<h3>What happened</h3><table>");
    for mark in &report.timeline {
        let class = if mark.harm { " class=\"harm\"" } else { "" };
        let _ = writeln!(
            html,
            "<tr{class}><td class=\"n\">{:.2} s</td><td>{}</td></tr>",
            mark.at_ms as f64 / 1e3,
            escaped(&mark.words)
        );
    }
    html.push_str("</table>\n");
    for (words, count) in &report.errors {
        let _ = writeln!(html, "<p>{count} requests failed: {}</p>", escaped(words));
    }
}

/// A line of a chart: its name, and points of milliseconds and values.
type Series = (String, Vec<(u64, f64)>);

fn charts(report: &Report, html: &mut String) {
    let end = report.requests.values().flatten().map(|(at, ..)| *at).max().unwrap_or(0).max(1);
    let mut rate: Vec<Series> = Vec::new();
    let mut failed: Vec<(u64, f64)> = vec![(0, 0.0); (end / BIN_MS + 1) as usize];
    let mut latency: Vec<Series> = Vec::new();
    for (way, requests) in &report.requests {
        let mut answered = vec![0.0; failed.len()];
        let mut slowest = vec![None::<f64>; failed.len()];
        for (at, took, ok) in requests {
            let bin = ((at / BIN_MS) as usize).min(answered.len() - 1);
            if *ok {
                answered[bin] += 1000.0 / BIN_MS as f64;
                slowest[bin] = Some(slowest[bin].unwrap_or(0.0).max(*took));
            } else {
                failed[bin].1 += 1000.0 / BIN_MS as f64;
            }
        }
        let at = |bin: usize| bin as u64 * BIN_MS;
        rate.push((
            (*way).to_owned(),
            answered.iter().enumerate().map(|(bin, value)| (at(bin), *value)).collect(),
        ));
        let points = slowest.iter().enumerate().filter_map(|(bin, value)| Some((at(bin), (*value)?)));
        latency.push(((*way).to_owned(), points.collect()));
    }
    failed.iter_mut().enumerate().for_each(|(bin, point)| point.0 = bin as u64 * BIN_MS);
    rate.push(("failed".to_owned(), failed));
    chart("Requests answered in a second", &rate, &report.timeline, end, html);
    chart("Slowest answer, in ms", &latency, &report.timeline, end, html);

    let mut nodes: Vec<&String> = report.samples.iter().flat_map(|sample| sample.tasks.keys()).collect();
    nodes.sort();
    nodes.dedup();
    let of = |node: &String| {
        let count = |sample: &super::Sample| f64::from(sample.tasks.get(node).copied().unwrap_or(0));
        (node.clone(), report.samples.iter().map(|sample| (sample.at_ms, count(sample))).collect())
    };
    let tasks: Vec<Series> = nodes.into_iter().map(of).collect();
    chart("Tasks running on each node", &tasks, &report.timeline, end, html);
    let terms = report.samples.iter().map(|sample| (sample.at_ms, sample.term as f64)).collect();
    chart("Term of the replicated log", &[("term".to_owned(), terms)], &report.timeline, end, html);
}

fn chart(title: &str, series: &[Series], marks: &[Mark], end: u64, html: &mut String) {
    let top = series.iter().flat_map(|(_, points)| points).map(|(_, value)| *value).fold(1.0, f64::max);
    let x = |at: u64| LEFT + (WIDTH - LEFT - 8.0) * at.min(end) as f64 / end as f64;
    let y = |value: f64| HEIGHT - 18.0 - (HEIGHT - 30.0) * value / top;
    let _ = write!(html, "<h3>{}</h3><div class=\"key\">", escaped(title));
    let colour = |number: usize, name: &str| {
        if name == "failed" { "#dc2626" } else { COLOURS[number % COLOURS.len()] }
    };
    for (number, (name, _)) in series.iter().enumerate() {
        let _ = write!(html, "<span style=\"color:{}\">{}</span>", colour(number, name), escaped(name));
    }
    let _ = write!(html, "</div>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"100%\" role=\"img\">");
    for share in [0.0, 0.5, 1.0] {
        let (value, at) = (top * share, y(top * share));
        let shown = if top < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") };
        let _ = write!(
            html,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#e2e8f0\"/>\
             <text x=\"{}\" y=\"{:.1}\" font-size=\"11\" text-anchor=\"end\" fill=\"#64748b\">{shown}</text>",
            WIDTH - 8.0,
            LEFT - 6.0,
            at + 4.0
        );
    }
    for second in (0..=end / 1000).step_by((end / 10_000 + 1) as usize) {
        let _ = write!(
            html,
            "<text x=\"{:.1}\" y=\"{}\" font-size=\"11\" text-anchor=\"middle\" fill=\"#64748b\">{second} s</text>",
            x(second * 1000),
            HEIGHT - 4.0
        );
    }
    for mark in marks.iter().filter(|mark| mark.harm) {
        let at = x(mark.at_ms);
        let _ = write!(
            html,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"6\" y2=\"{}\" stroke=\"#dc2626\" stroke-dasharray=\"4 3\">\
             <title>{}</title></line>",
            HEIGHT - 18.0,
            escaped(&mark.words)
        );
    }
    for (number, (name, points)) in series.iter().enumerate() {
        let line: Vec<String> =
            points.iter().map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value))).collect();
        let _ = write!(
            html,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\"/>",
            line.join(" "),
            colour(number, name)
        );
    }
    html.push_str("</svg>\n");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::Sample;

    #[test]
    fn a_page_needs_nothing_but_itself() {
        let report = Report {
            drill: "leader-kill",
            promise: "Writes <go> on.",
            verdict: Verdict::Failed(vec!["it & that".into()]),
            machine: "this one".into(),
            lines: Vec::new(),
            timeline: vec![Mark { at_ms: 1500, words: "harm".into(), harm: true }],
            samples: vec![Sample { at_ms: 100, term: 3, tasks: [("n1".to_owned(), 2)].into() }],
            requests: [("write", vec![(10, 4.5, true), (1600, 900.0, false)])].into(),
            errors: Default::default(),
        };
        let page = page(&[report]);
        assert!(page.contains("Writes &lt;go&gt; on.") && page.contains("it &amp; that"), "{page}");
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert_eq!(page.matches("<svg").count(), 4);
        assert!(!page.contains("http") && !page.contains("<script"), "{page}");
    }
}
