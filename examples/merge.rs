//! Merges a soup at one preference and writes the model, as `ladle merge` does.
//!
//!     cargo run --release --example merge -- backbones faithful=0.3,brief=0.7 merged

use std::{env, error::Error, path::Path};

use ladle::{
    import::{Store, default_models_dir},
    merge::export::export_model,
    preference::Form,
    soup::OpenOptions,
};

/// Writes the checkpoint of `preference` to `out`, which must not exist yet.
pub fn merge(soup: &Path, preference: &str, out: &Path) -> Result<(), Box<dyn Error>> {
    let models_dir = default_models_dir().ok_or("set LADLE_HOME or HOME")?;
    let store = Store { models_dir, offline: false };
    let soup = store.open(soup, OpenOptions { verify_digests: true, ..OpenOptions::default() })?;
    let menu = soup.manifest.menu()?;
    let preference = menu.preference("preference", Form::from_text("preference", preference)?)?;
    let solution = soup.mixing.solve_by(menu.default_rule, &preference, &menu.default_alpha);
    export_model(&soup, &solution.coefficients, None, out)?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [soup, preference, out] = arguments.as_slice() else {
        return Err("expected three arguments: SOUP PREFERENCE OUT".into());
    };
    merge(Path::new(soup), preference, Path::new(out))
}
