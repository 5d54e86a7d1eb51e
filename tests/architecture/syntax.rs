//! Syntax → modules: declarations, imports and every path that is named.

use proc_macro2::{TokenStream, TokenTree};
use syn::{
    Attribute, File, ImplItemFn, Item, ItemMod, ItemUse, Macro, Meta, UseTree, Visibility,
    visit::{self, Visit},
};

use crate::tree::{Mention, Module, Names, Sources, Tree};

/// Reads the file of a module, and its children's.
pub fn read(tree: &mut Tree, sources: &Sources, module: usize) {
    let name = &tree.modules[module].file;
    let text = sources.get(name).unwrap_or_else(|| panic!("{name} is declared, not there"));
    let file: File = syn::parse_str(text).unwrap_or_else(|e| panic!("{name}: {e}"));
    Reader { tree, sources, module }.visit_file(&file);
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
        read(self.tree, self.sources, child);
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
pub fn directory(file: &str) -> String {
    file.rsplit_once('/').map(|(directory, _)| format!("{directory}/")).unwrap_or_default()
}
