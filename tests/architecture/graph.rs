//! The file → file graph of the crates, read from their sources with `syn`.
//!
//! An arrow goes from a file to the file that defines an item which the first one names: in a `use`,
//! in a path (`crate::a::b()`, `super::c`, `a::D` where `a` is imported), in the tokens of a macro or
//! an attribute. Re-exports are followed to the definition. Three things are no arrow: `mod child;`,
//! a module that re-exports what its descendants define, and whatever stands under `#[cfg(test)]`.
//! Fields and methods are reached through a type that is named somewhere, so they need no reading.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use proc_macro2::{TokenStream, TokenTree};
use syn::{
    Attribute, File, ImplItemFn, Item, ItemMod, ItemUse, Macro, Meta, UseTree, Visibility,
    visit::{self, Visit},
};

/// Text of each source file by its path.
pub type Sources = BTreeMap<String, String>;

/// A crate: the name that other crates call it by, and its root file.
pub struct Crate {
    pub name: &'static str,
    pub root: &'static str,
}

/// Arrows (from, to), each with one path that makes it.
pub type Arrows = BTreeMap<(String, String), String>;

/// The arrows of all crates together.
pub fn arrows(sources: &Sources, crates: &[Crate]) -> Arrows {
    let mut tree = Tree::default();
    for krate in crates {
        let root = tree.add(Module::of(krate.root, directory(krate.root), None));
        tree.roots.insert(krate.name, root);
        tree.read(sources, root);
    }
    tree.arrows()
}

/// The groups of files that reach each other, smallest file first.
pub fn circles(arrows: &Arrows) -> Vec<BTreeSet<String>> {
    let mut next: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (from, to) in arrows.keys() {
        next.entry(from).or_default().push(to);
    }
    let reached = |from: &str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(file) = open.pop() {
            for to in next.get(file).into_iter().flatten() {
                if seen.insert(*to) {
                    open.push(to);
                }
            }
        }
        seen
    };
    let reach: BTreeMap<&str, BTreeSet<&str>> =
        next.keys().map(|file| (*file, reached(file))).collect();
    let mut circles: Vec<BTreeSet<String>> = Vec::new();
    for (file, to) in &reach {
        if !to.contains(file) || circles.iter().any(|circle| circle.contains(*file)) {
            continue;
        }
        let back = |other: &&&str| reach.get(**other).is_some_and(|reach| reach.contains(file));
        circles.push(to.iter().filter(back).map(ToString::to_string).collect());
    }
    circles
}

type Names = Vec<String>;

#[derive(Default)]
struct Module {
    file: String,
    /// Directory of the files of its children.
    directory: String,
    parent: Option<usize>,
    children: HashMap<String, usize>,
    items: HashSet<String>,
    /// Imported names and what they stand for.
    imports: HashMap<String, Vec<Names>>,
    globs: Vec<Names>,
    mentions: Vec<Mention>,
}

impl Module {
    fn of(file: &str, directory: String, parent: Option<usize>) -> Self {
        Self { file: file.to_owned(), directory, parent, ..Self::default() }
    }
}

/// A path that a module names.
struct Mention {
    path: Names,
    /// It is passed on (`pub use`), not used.
    reexport: bool,
}

/// What a path leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Module(usize),
    /// An item that this module defines.
    Item(usize),
}

#[derive(Default)]
struct Tree {
    modules: Vec<Module>,
    roots: HashMap<&'static str, usize>,
    /// `#[macro_export]`: the macro and the module that defines it.
    exported: HashMap<(usize, String), usize>,
}

impl Tree {
    fn add(&mut self, module: Module) -> usize {
        self.modules.push(module);
        self.modules.len() - 1
    }

    fn read(&mut self, sources: &Sources, module: usize) {
        let name = &self.modules[module].file;
        let text = sources.get(name).unwrap_or_else(|| panic!("{name} is declared, not there"));
        let file: File = syn::parse_str(text).unwrap_or_else(|e| panic!("{name}: {e}"));
        Reader { tree: self, sources, module }.visit_file(&file);
    }

    fn root(&self, mut module: usize) -> usize {
        while let Some(parent) = self.modules[module].parent {
            module = parent;
        }
        module
    }

    fn arrows(&self) -> Arrows {
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

/// Fills one module, and its children, from syntax.
struct Reader<'a> {
    tree: &'a mut Tree,
    sources: &'a Sources,
    module: usize,
}

impl Reader<'_> {
    fn own(&mut self) -> &mut Module {
        &mut self.tree.modules[self.module]
    }

    fn mention(&mut self, path: Names) {
        self.own().mentions.push(Mention { path, reexport: false });
    }

    fn import(&mut self, tree: &UseTree, prefix: &[String], reexport: bool) {
        let with = |name: String| [prefix, std::slice::from_ref(&name)].concat();
        let mut named = |path: Names, name: String| {
            // `use a::{self, b}`: the module itself.
            let path: Names = match path.split_last() {
                Some((last, rest)) if last == "self" && !rest.is_empty() => rest.to_vec(),
                _ => path,
            };
            let name = if name == "self" { path.last().cloned().unwrap_or_default() } else { name };
            let module = self.own();
            module.imports.entry(name).or_default().push(path.clone());
            module.mentions.push(Mention { path, reexport });
        };
        match tree {
            UseTree::Path(path) => {
                self.import(&path.tree, &with(path.ident.to_string()), reexport);
            }
            UseTree::Name(name) => named(with(name.ident.to_string()), name.ident.to_string()),
            UseTree::Rename(it) => named(with(it.ident.to_string()), it.rename.to_string()),
            UseTree::Glob(_) => {
                let module = self.own();
                module.globs.push(prefix.to_vec());
                module.mentions.push(Mention { path: prefix.to_vec(), reexport });
            }
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.import(tree, prefix, reexport));
            }
        }
    }

    fn child(&mut self, item: &ItemMod) {
        let name = item.ident.to_string();
        let own = self.own();
        let inside = format!("{}{name}/", own.directory);
        if let Some((_, items)) = &item.content {
            let module = Module::of(&own.file.clone(), inside, Some(self.module));
            let child = self.tree.add(module);
            self.own().children.insert(name, child);
            let mut reader = Reader { tree: self.tree, sources: self.sources, module: child };
            items.iter().for_each(|item| reader.visit_item(item));
            return;
        }
        let flat = format!("{}{name}.rs", own.directory);
        let file = match explicit_path(&item.attrs) {
            Some(path) => format!("{}{path}", directory(&own.file)),
            None if self.sources.contains_key(&flat) => flat,
            None => format!("{inside}mod.rs"),
        };
        let child = self.tree.add(Module::of(&file, inside, Some(self.module)));
        self.own().children.insert(name, child);
        self.tree.read(self.sources, child);
    }

    /// The paths in tokens that no syntax tree shows: `a::b`, `$crate::c`, and single names.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path = Names::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.mention(std::mem::take(&mut path));
                    }
                    path.push(ident.to_string());
                }
                other => {
                    self.mention(std::mem::take(&mut path));
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
            colons = 0;
        }
        self.mention(path);
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let (name, attributes) = named(item);
        if is_test(attributes) {
            return;
        }
        if let Some(name) = name {
            if attributes.iter().any(|attribute| attribute.path().is_ident("macro_export")) {
                let root = self.tree.root(self.module);
                self.tree.exported.insert((root, name.clone()), self.module);
            }
            self.own().items.insert(name);
        }
        match item {
            Item::Mod(item) => self.child(item),
            _ => visit::visit_item(self, item),
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        if !is_test(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if item.leading_colon.is_none() {
            self.import(&item.tree, &[], !matches!(item.vis, Visibility::Inherited));
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            self.mention(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.visit_path(&call.path);
        self.tokens(call.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone());
        }
    }
}

/// The name that an item defines, and its attributes.
fn named(item: &Item) -> (Option<String>, &[Attribute]) {
    let (ident, attributes) = match item {
        Item::Const(it) => (Some(&it.ident), &it.attrs),
        Item::Enum(it) => (Some(&it.ident), &it.attrs),
        Item::Fn(it) => (Some(&it.sig.ident), &it.attrs),
        Item::Macro(it) => (it.ident.as_ref(), &it.attrs),
        Item::Static(it) => (Some(&it.ident), &it.attrs),
        Item::Struct(it) => (Some(&it.ident), &it.attrs),
        Item::Trait(it) => (Some(&it.ident), &it.attrs),
        Item::Type(it) => (Some(&it.ident), &it.attrs),
        Item::Union(it) => (Some(&it.ident), &it.attrs),
        Item::Mod(it) => (None, &it.attrs),
        Item::Use(it) => (None, &it.attrs),
        Item::Impl(it) => (None, &it.attrs),
        Item::ForeignMod(it) => (None, &it.attrs),
        _ => return (None, &[]),
    };
    (ident.map(ToString::to_string), attributes)
}

/// `#[cfg(test)]`, alone or within `all`.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let Meta::List(list) = &attribute.meta else { return false };
        let text = list.tokens.to_string();
        attribute.path().is_ident("cfg") && (text == "test" || text.starts_with("all (test"))
    })
}

/// `#[path = "…"]` of a module.
fn explicit_path(attributes: &[Attribute]) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.path().is_ident("path"))?;
    let Meta::NameValue(pair) = &attribute.meta else { return None };
    let syn::Expr::Lit(literal) = &pair.value else { return None };
    let syn::Lit::Str(text) = &literal.lit else { return None };
    Some(text.value())
}

/// The directory of a file, with a slash at its end.
fn directory(file: &str) -> String {
    file.rsplit_once('/').map(|(directory, _)| format!("{directory}/")).unwrap_or_default()
}
