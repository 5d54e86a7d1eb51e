//! The report: what a reader and a browser get.

use ladle_training::measure::{
    bootstrap::Interval,
    front::grid,
    methods::{Kind, LeftOut},
    points::{Point, Text},
    report::{Curve, Report, Shown},
    results::{FORMAT, FrontFile, Gain, MethodFront, Objective},
};

/// A made-up front: `gain` bends it outwards.
fn points(n: usize, gain: f64) -> Vec<Point> {
    let reward = |w: &f64| (w + gain * w * (1.0 - w)).sqrt();
    let text = Text { words: 12.0, finished: 1.0, distinct_2: 0.5, rouge_l: None };
    let point = |mu: Vec<f64>| Point {
        lambda: Some(mu.clone()),
        mean: mu.iter().map(reward).collect(),
        standardised: mu.iter().map(reward).collect(),
        spread: vec![0.02; n],
        kl: Some(3.0),
        dominated: false,
        text,
        preference: mu,
    };
    grid(n, 10).into_iter().map(point).collect()
}

fn report(n: usize) -> Report {
    let names = ["faithful", "brief", "plain <&>"];
    let objective =
        |o: &&str| Objective { name: (*o).into(), unit: "share".into(), mean: 0.0, std: 1.0 };
    let objectives: Vec<Objective> = names[..n].iter().map(objective).collect();
    let sft = Point { mean: vec![2.0; n], ..points(n, 0.0).remove(0) };
    let method = |name: &str, kind, gain| {
        let sft = (kind == Kind::Aba).then_some(&sft);
        MethodFront::measure(name.into(), (Some(kind), 0.0), points(n, gain), sft).unwrap()
    };
    let mut methods = vec![
        method("bone soup (nominal)", Kind::Bone, 0.6),
        method("rewarded soup", Kind::Rewarded, 0.1),
        method("aba", Kind::Aba, 0.3),
    ];
    let interval = Interval { mean: 0.25, low: 0.125, high: 0.5 };
    let over = "rewarded soup".to_owned();
    methods[0].gain = Some(Gain { over, all: interval, interior: interval });
    methods[0].verdicts = vec!["past the knee <test>".to_owned()];
    let left_out = vec![LeftOut { method: "mod".into(), reason: "singular".into() }];
    let front = FrontFile {
        format: FORMAT,
        sha256: Default::default(),
        reference_point: FrontFile::reference(&objectives),
        objectives,
        controllability_ceiling: 1.0,
        temperature: 1.0,
        prompts: 309,
        seeds: vec![1, 2, 3],
        methods,
        oracles: Vec::new(),
        selected: Vec::new(),
        left_out,
    };
    let curve = |title: &str, phase: f64| Curve {
        title: title.into(),
        unit: "mean reward".into(),
        series: (0..n)
            .map(|i| {
                let y =
                    |t: f64| 1.0 - (-t / (20.0 + 10.0 * i as f64)).exp() + 0.03 * (t + phase).sin();
                (names[i].into(), (0..120).map(|t| (f64::from(t), y(f64::from(t)))).collect())
            })
            .collect(),
    };
    Report {
        title: "Default soup <test>".into(),
        facts: vec![("base".into(), "SmolLM2-135M-Instruct".into())],
        front,
        curves: vec![curve("reward by backbone", 0.0), curve("KL by backbone", 1.0)],
        samples: vec![Shown {
            prompt: "An abstract & more".into(),
            responses: vec![
                ("μ = (1, 0)".into(), "A long <b>faithful</b> summary.".into()),
                ("μ = (0, 1)".into(), "Short.".into()),
            ],
        }],
    }
}

#[test]
fn the_page_stands_alone_and_shows_every_method_and_metric() {
    for n in [2, 3] {
        let report = report(n);
        let page = report.html();
        for outside in ["http:", "https:", "src=", "@import", "<script", "<link"] {
            assert!(!page.contains(outside), "the page refers to the outside: {outside}");
        }
        for method in &report.front.methods {
            assert!(page.contains(&method.method));
        }
        let pairs = n * (n - 1) / 2;
        let maps = if n == 2 { 2 } else { 3 * 3 };
        assert_eq!(page.matches("<figure>").count(), pairs + maps + report.curves.len());
        assert!(!page.contains("NaN") && !page.contains("inf\""));
    }
}

#[test]
fn the_comparison_stands_on_the_page_and_in_the_terminal() {
    let report = report(3);
    let (page, text) = (report.html(), report.front.to_string());
    let gain = "bone soup (nominal) − rewarded soup: +0.250 σ (+0.125 to +0.500)";
    for line in [gain, "mod is left out: singular"] {
        assert!(page.contains(line) && text.contains(line), "{line}");
    }
    assert!(page.contains("past the knee &lt;test&gt;") && text.contains("past the knee <test>"));
    // Every point of the third method is dominated by the made-up start.
    assert_eq!(report.front.methods[2].dominated(), 66);
    assert_eq!(report.front.reference_point, [-0.5; 3]);
}

#[test]
fn text_from_outside_is_escaped() {
    let page = report(3).html();
    assert!(page.contains("Default soup &lt;test&gt;") && page.contains("plain &lt;&amp;&gt;"));
    assert!(page.contains("A long &lt;b&gt;faithful&lt;/b&gt; summary."));
    assert!(!page.contains("<b>faithful"));
}

#[test]
fn curves_that_are_not_finite_leave_a_note_instead_of_a_broken_plot() {
    let mut report = report(2);
    report.curves[0].series = vec![("x".into(), vec![(0.0, f64::NAN)])];
    assert!(report.html().contains("no finite values"));
}

#[test]
fn front_json_survives_a_round_trip_and_keeps_its_metrics() {
    let front = report(3).front;
    let text = serde_json::to_string(&front).unwrap();
    let read: FrontFile = serde_json::from_str(&text).unwrap();
    assert_eq!(read.methods.len(), 3);
    let (bent, flat) = (&read.methods[0].metrics, &read.methods[1].metrics);
    assert!(bent.hypervolume > flat.hypervolume);
    assert_eq!(bent.front_length, 66);
    assert_eq!(bent.controllability, 1.0);
}
