//! Manifests: digests, paths, matrices, keys and values.

use super::*;

#[test]
fn a_wrong_digest_is_refused() {
    let kitchen = Kitchen::new();
    let path = kitchen.path(HELPFUL);
    let mut bytes = fs::read(&path).unwrap();
    let expected =
        Manifest::parse(&fs::read_to_string(kitchen.path("soup-tiny/soup.toml")).unwrap())
            .unwrap()
            .sha256["backbones/helpful/adapter_model.safetensors"]
            .clone();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    kitchen
        .refuses("soup-tiny", &["adapter_model.safetensors", "sha256 is", "expected", &expected]);
    // Asked not to read the weights, it serves what is there.
    let unverified = OpenOptions { verify_digests: false, ..options() };
    Soup::open(&kitchen.path("soup-tiny"), &unverified).unwrap();

    let kitchen = Kitchen::new();
    kitchen.edit("soup-tiny/soup.toml", "\"backbones/helpful/adapter_model.safetensors\" = ", "# ");
    kitchen.refuses("soup-tiny", &["adapter_model.safetensors", "no sha256"]);
    let kitchen = Kitchen::new();
    kitchen.edit("soup-tiny/soup.toml", "[sha256]", &format!("[sha256]\nghost = \"{expected}\""));
    kitchen.refuses("soup-tiny", &["ghost", "no weight file", "backbones/brief"]);
    let kitchen = Kitchen::new();
    kitchen.edit(
        "soup-tiny/soup.toml",
        "[base.sha256]\n\"model.safetensors\" = \"",
        "[base.sha256]\n\"model.safetensors\" = \"0",
    );
    kitchen.refuses("soup-tiny", &["base.sha256.\"model.safetensors\"", "64 lower-case"]);
}

#[test]
fn paths_that_leave_the_soup_are_refused() {
    for path in ["../soup-tiny/backbones/helpful", "/etc", "./backbones/../../x", ""] {
        let kitchen = Kitchen::new();
        kitchen.edit("soup-tiny/soup.toml", "\"backbones/helpful\"", &format!("{path:?}"));
        kitchen.refuses("soup-tiny", &["soup.toml", "backbones[0].path", "inside the soup", path]);
    }
}

#[cfg(unix)]
#[test]
fn links_that_leave_the_soup_are_refused() {
    use std::os::unix::fs::symlink;
    let kitchen = Kitchen::new();
    let (inside, outside) = (kitchen.path("soup-tiny/backbones/helpful"), kitchen.path("outside"));
    fs::rename(&inside, &outside).unwrap();
    symlink(&outside, &inside).unwrap();
    kitchen.refuses("soup-tiny", &["backbones/helpful", "leaves the soup", "outside"]);

    let kitchen = Kitchen::new();
    let (inside, outside) = (kitchen.path(HELPFUL), kitchen.path("weights"));
    fs::rename(&inside, &outside).unwrap();
    symlink(&outside, &inside).unwrap();
    kitchen.refuses("soup-tiny", &["adapter_model.safetensors", "leaves the soup", "weights"]);
}

#[cfg(unix)]
#[test]
fn a_front_that_a_link_takes_from_outside_the_soup_is_refused() {
    let kitchen = Kitchen::new();
    let outside = kitchen.path("secret.json");
    fs::write(&outside, r#"{"key": "of somebody else"}"#).unwrap();
    std::os::unix::fs::symlink(&outside, kitchen.path("soup-tiny/front.json")).unwrap();
    kitchen.refuses("soup-tiny", &["front.json", "leaves the soup", "secret.json"]);
}

#[test]
fn a_base_that_is_not_the_pinned_one_is_refused_unless_it_was_asked_for() {
    let kitchen = Kitchen::new();
    let weights = kitchen.path("soup-tiny/base/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    // A sign: still a number.
    *bytes.last_mut().unwrap() ^= 0x80;
    fs::write(&weights, bytes).unwrap();
    kitchen.refuses("soup-tiny", &["base/model.safetensors", "sha256 is", "expected"]);
    let base = Some(kitchen.path("soup-tiny/base"));
    let asked = OpenOptions { base, other_base: true, ..options() };
    let soup = Soup::open(&kitchen.path("soup-tiny"), &asked).unwrap();
    assert_ne!(soup.digest, Soup::open(&fixture("soup-tiny"), &options()).unwrap().digest);
}

#[test]
fn a_matrix_that_breaks_a_rule_is_refused_by_rule() {
    let cases: [(&str, &[&str]); 10] = [
        ("beta = 0.3", &["mixing.beta", "0.3", "3 objectives"]),
        ("beta = 1.0", &["mixing.beta", "beta is 1"]),
        ("matrix = [[0.5, 0.5], [0.5, 0.5]]", &["mixing.matrix", "3 rows", "got 2"]),
        (
            "matrix = [[0.5, 0.1, 0.1], [0.25, 0.8, 0.1], [0.25, 0.1]]",
            &["mixing.matrix", "row 2 has 2 entries, expected 3"],
        ),
        (
            "matrix = [[0.6, 0.1, 0.1], [0.6, 0.8, 0.1], [-0.2, 0.1, 0.8]]",
            &["mixing.matrix", "entry (2, 0) is -0.2"],
        ),
        (
            "matrix = [[0.6, 0.1, 0.1], [0.2, 0.8, 0.1], [0.3, 0.1, 0.8]]",
            &["mixing.matrix", "column 0 sums to 1.1"],
        ),
        (
            "matrix = [[0.2, 0.1, 0.1], [0.5, 0.8, 0.1], [0.3, 0.1, 0.8]]",
            &["mixing.matrix", "column 0 is not dominated"],
        ),
        ("beta = 0.7\nmatrix = [[1.0]]", &["mixing", "beta or matrix", "both"]),
        ("mapping = \"realised\"\nbeta = 0.7", &["mixing.mapping", "mixing.realised"]),
        (
            "mapping = \"realised\"\nbeta = 0.7\nrealised = [[0.36, 0.32, 0.32], [0.32, 0.36, \
             0.32], [0.32, 0.32, 0.36]]",
            &["mixing.mapping", "condition number of 20", "with 25.0"],
        ),
    ];
    for (mixing, parts) in cases {
        let kitchen = Kitchen::new();
        kitchen.edit("soup-tiny/soup.toml", "beta = 0.7", mixing);
        let parts = [&["soup.toml"], parts].concat();
        kitchen.refuses("soup-tiny", &parts);
    }
    // Which is on record, but nothing that could be solved with.
    let tied = "beta = 0.7\nrealised = [[0.4, 0.4, 0.2], [0.4, 0.4, 0.2], [0.2, 0.2, 0.6]]";
    let kitchen = Kitchen::new();
    kitchen.edit("soup-tiny/soup.toml", "beta = 0.7", tied);
    let soup = Soup::open(&kitchen.path("soup-tiny"), &options()).unwrap();
    assert_eq!(soup.mixing, MixingMatrix::circulant(3, 0.7).unwrap());
    kitchen.edit("soup-tiny/soup.toml", "beta = 0.7", "mapping = \"realised\"\nbeta = 0.7");
    kitchen.refuses("soup-tiny", &["mixing.realised", "column 0 is not dominated"]);
    let kitchen = Kitchen::new();
    let short = "beta = 0.7\nrealised = [[0.4, 0.4, 0.2], [0.4, 0.4, 0.2]]";
    kitchen.edit("soup-tiny/soup.toml", "beta = 0.7", short);
    kitchen.refuses("soup-tiny", &["mixing.realised", "3 rows"]);
    let kitchen = Kitchen::new();
    let nearly = "matrix = [[0.33334, 0.33333, 0.33333], [0.33333, 0.33334, 0.33333], [0.33333, 0.33333, 0.33334]]";
    kitchen.edit("soup-tiny/soup.toml", "beta = 0.7", nearly);
    kitchen.refuses("soup-tiny", &["mixing.matrix", "condition number", "at most"]);
}

#[test]
fn manifests_are_refused_by_key_and_value() {
    let cases: [(&str, &str, &[&str]); 18] = [
        ("format = 1", "format = 2", &["format", "expected 1, got 2"]),
        ("format = 1", "format = 1\ncolour = \"red\"", &["unknown field `colour`", "objectives"]),
        ("name = \"soup-tiny\"", "name = \"a:b\"", &["name", "A-Z a-z", "a:b"]),
        ("name = \"soup-tiny\"", "", &["missing field `name`"]),
        ("default = \"balanced\"", "default = \"sweet\"", &["default", "balanced, terse", "sweet"]),
        ("path = \"base\"", "path = \"cellar\"", &["cellar", "nothing at", "ladle import"]),
        ("path = \"base\"", "id = \"a/b/c\"", &["base.id", "OWNER/NAME", "a/b/c"]),
        ("path = \"base\"", "id = \"../base\"", &["base.id", "../base"]),
        ("path = \"base\"", "path = \"base\"\nid = \"x\"", &["base", "one of path, id and gguf"]),
        (
            "path = \"base\"",
            "path = \"base\"\nrevision = \"x\"",
            &["base.revision", "beside an id"],
        ),
        ("name = \"harmless\"", "name = \"helpful\"", &["objectives[1].name", "\"helpful\" twice"]),
        ("name = \"harmless\"", "name = \"sft\"", &["objectives[1].name", "reserved"]),
        ("range = [0.0, 1.0]", "range = [1.0, 0.0]", &["objectives[0].range", "low < high"]),
        ("bounds = [0.0, 2.0]", "bounds = [2.0, 0.0]", &["extrapolation.bounds", "[2, 0]"]),
        ("alpha = 0.0", "alpha = 3.0", &["extrapolation.alpha", "3", "[0, 2]"]),
        (
            "alpha = 0.0",
            "alpha = { sweet = 1.0 }",
            &["extrapolation.alpha", "known: helpful", "sweet"],
        ),
        (
            "brief = 0.8, helpful",
            "brief = 0.8, sweet",
            &["presets.terse", "known: helpful", "sweet"],
        ),
        ("brief = 0.8, helpful", "brief = -0.8, helpful", &["presets.terse", "-0.8", "≥ 0"]),
    ];
    for (from, to, parts) in cases {
        let kitchen = Kitchen::new();
        kitchen.edit("soup-tiny/soup.toml", from, to);
        kitchen.refuses("soup-tiny", parts);
    }
    let kitchen = Kitchen::new();
    let text = fs::read_to_string(kitchen.path("soup-tiny/soup.toml")).unwrap();
    let last = text.rfind("[[backbones]]").unwrap();
    let sha = text.rfind("[sha256]").unwrap();
    let fewer = format!("{}{}", &text[..last], &text[sha..]);
    fs::write(kitchen.path("soup-tiny/soup.toml"), fewer).unwrap();
    kitchen.refuses("soup-tiny", &["backbones", "expected 3", "got 2"]);
    fs::write(
        kitchen.path("soup-tiny/soup.toml"),
        text.replace("path = \"backbones/brief\"", "path = \"backbones/brief\"\nweights = 3"),
    )
    .unwrap();
    kitchen.refuses("soup-tiny", &["soup.toml", "unknown field `weights`"]);
    fs::remove_file(kitchen.path("soup-tiny/soup.toml")).unwrap();
    kitchen.refuses("soup-tiny", &["soup.toml"]);
}
