//! The modules of the crates and what the paths in them mean.

use std::collections::{BTreeMap, HashMap, HashSet};

/// Text of each source file by its path.
pub type Sources = BTreeMap<String, String>;

/// Arrows (from, to), each with one path that makes it.
pub type Arrows = BTreeMap<(String, String), String>;

pub type Names = Vec<String>;

#[derive(Default)]
pub struct Module {
    pub file: String,
    /// Directory of the files of its children.
    pub directory: String,
    parent: Option<usize>,
    pub children: HashMap<String, usize>,
    pub items: HashSet<String>,
    /// Imported names and what they stand for.
    pub imports: HashMap<String, Vec<Names>>,
    pub globs: Vec<Names>,
    pub mentions: Vec<Mention>,
}

impl Module {
    pub fn of(file: &str, directory: String, parent: Option<usize>) -> Self {
        Self { file: file.to_owned(), directory, parent, ..Self::default() }
    }
}

/// A path that a module names.
pub struct Mention {
    pub path: Names,
    /// It is passed on (`pub use`), not used.
    pub reexport: bool,
}

/// What a path leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Module(usize),
    /// An item that this module defines.
    Item(usize),
}

#[derive(Default)]
pub struct Tree {
    pub modules: Vec<Module>,
    pub roots: HashMap<&'static str, usize>,
    /// `#[macro_export]`: the macro and the module that defines it.
    pub exported: HashMap<(usize, String), usize>,
}

impl Tree {
    pub fn add(&mut self, module: Module) -> usize {
        self.modules.push(module);
        self.modules.len() - 1
    }

    pub fn root(&self, mut module: usize) -> usize {
        while let Some(parent) = self.modules[module].parent {
            module = parent;
        }
        module
    }

    pub fn arrows(&self) -> Arrows {
        let mut arrows = Arrows::new();
        for (at, module) in self.modules.iter().enumerate() {
            for mention in &module.mentions {
                for target in self.resolve(at, &mention.path, &mut HashSet::new()) {
                    let Target::Item(owner) = target else { continue };
                    let (from, to) = (&module.file, &self.modules[owner].file);
                    if from != to && !(mention.reexport && self.is_within(owner, at)) {
                        let key = (from.clone(), to.clone());
                        arrows.entry(key).or_insert_with(|| mention.path.join("::"));
                    }
                }
            }
        }
        arrows
    }

    fn is_within(&self, mut module: usize, ancestor: usize) -> bool {
        while let Some(parent) = self.modules[module].parent {
            if parent == ancestor {
                return true;
            }
            module = parent;
        }
        false
    }

    /// What `path` means in module `at`; nothing where it is of another crate, or local.
    fn resolve(
        &self,
        at: usize,
        path: &[String],
        seen: &mut HashSet<(usize, String)>,
    ) -> Vec<Target> {
        let Some((first, mut rest)) = path.split_first() else { return Vec::new() };
        let mut targets = match first.as_str() {
            "crate" => vec![Target::Module(self.root(at))],
            "self" => vec![Target::Module(at)],
            "super" => {
                let mut module = self.modules[at].parent;
                while rest.first().is_some_and(|name| name == "super") {
                    rest = &rest[1..];
                    module = module.and_then(|module| self.modules[module].parent);
                }
                module.map(Target::Module).into_iter().collect()
            }
            name => {
                let found = self.lookup(at, name, rest.is_empty(), seen);
                match self.roots.get(name) {
                    Some(root) if found.is_empty() => vec![Target::Module(*root)],
                    _ => found,
                }
            }
        };
        for (i, name) in rest.iter().enumerate() {
            let last = i + 1 == rest.len();
            let step = |target: &Target| match *target {
                // A variant or an associated item stands with its type.
                Target::Item(_) => vec![*target],
                Target::Module(module) => {
                    let found = self.lookup(module, name, last, seen);
                    // What no source shows, a macro of that module has made.
                    if found.is_empty() { vec![Target::Item(module)] } else { found }
                }
            };
            targets = targets.iter().flat_map(step).collect();
        }
        targets
    }

    /// What `name` is in a module. Of a module and an item of one name, the path's end means the
    /// item and the middle of a path the module.
    fn lookup(
        &self,
        at: usize,
        name: &str,
        last: bool,
        seen: &mut HashSet<(usize, String)>,
    ) -> Vec<Target> {
        let module = &self.modules[at];
        let child = module.children.get(name).map(|child| vec![Target::Module(*child)]);
        let item = module.items.contains(name).then(|| vec![Target::Item(at)]);
        let own = if last { item.or(child) } else { child.or(item) };
        if let Some(own) = own {
            return own;
        }
        if let Some(owner) = self.exported.get(&(at, name.to_owned())) {
            return vec![Target::Item(*owner)];
        }
        if !seen.insert((at, name.to_owned())) {
            return Vec::new();
        }
        let imports = module.imports.get(name);
        let mut found = Vec::new();
        for path in imports.into_iter().flatten() {
            found.extend(self.resolve(at, path, seen));
        }
        for path in module.globs.iter().filter(|_| imports.is_none()) {
            for target in self.resolve(at, path, seen) {
                if let Target::Module(module) = target {
                    found.extend(self.lookup(module, name, last, seen));
                }
            }
        }
        seen.remove(&(at, name.to_owned()));
        found
    }
}
