//! Finds the top-level modules of a crate that each of its files names.
//!
//! The file is parsed with `syn`, so strings and comments are ignored. A module is found if a path
//! begins with `crate::NAME`, in a `use` or in code. Imports, modules, free functions, impl blocks
//! and enum variants under `#[cfg(test)]` are ignored, because a test may use every module of its
//! crate. Macro bodies, `pub(in crate::NAME)`, `use crate::*` and `use {crate::NAME, ..}` are not
//! searched.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use syn::visit::{self, Visit};

/// Returns the names that follow `crate::` in a Rust source, except for those in tests.
///
/// # Errors
/// Returns an error if the source has a syntax error.
pub fn crate_names(source: &str) -> syn::Result<BTreeSet<String>> {
    let file = syn::parse_file(source)?;
    let mut names = Names::default();
    names.visit_file(&file);
    Ok(names.0)
}

/// Returns the items that the root of a crate imports or re-exports by name, each with the first
/// segment of its path. For an item of the crate, this is the top-level module that contains it:
/// `pub use error::Error;` gives the pair (`Error`, `error`).
///
/// # Errors
/// Returns an error if the source has a syntax error.
pub fn re_exports(lib: &str) -> syn::Result<BTreeMap<String, String>> {
    let mut exports = BTreeMap::new();
    for item in syn::parse_file(lib)?.items {
        if let syn::Item::Use(item) = item
            && let syn::UseTree::Path(path) = item.tree
        {
            let module = path.ident.to_string();
            let mut names = Names::default();
            names.add_leaves(&path.tree);
            exports.extend(names.0.into_iter().map(|name| (name, module.clone())));
        }
    }
    Ok(exports)
}

/// Returns the top-level module of a file, from its path below `src/`. Both `log.rs` and
/// `log/writer.rs` belong to `log`. Returns `None` for an empty path.
#[must_use]
pub fn top_module(below_src: &Path) -> Option<String> {
    let first = below_src.components().next()?;
    let name = Path::new(first.as_os_str()).file_stem()?;
    Some(name.to_string_lossy().into_owned())
}

#[derive(Default)]
struct Names(BTreeSet<String>);

impl Names {
    fn add_tree(&mut self, tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(path) => self.add(&path.ident),
            syn::UseTree::Name(name) => self.add(&name.ident),
            syn::UseTree::Rename(name) => self.add(&name.ident),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_tree(tree)),
            syn::UseTree::Glob(_) => {}
        }
    }

    fn add_leaves(&mut self, tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(path) => self.add_leaves(&path.tree),
            syn::UseTree::Name(name) => self.add(&name.ident),
            syn::UseTree::Rename(name) => self.add(&name.rename),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_leaves(tree)),
            syn::UseTree::Glob(_) => {}
        }
    }

    fn add(&mut self, name: &syn::Ident) {
        self.0.insert(name.to_string());
    }
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if let syn::UseTree::Path(path) = &item.tree
            && path.ident == "crate"
            && !is_test(&item.attrs)
        {
            self.add_tree(&path.tree);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let mut segments = path.segments.iter();
        if segments.next().is_some_and(|first| first.ident == "crate")
            && let Some(second) = segments.next()
        {
            self.add(&second.ident);
        }
        visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if !is_test(&item.attrs) {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        if !is_test(&variant.attrs) {
            visit::visit_variant(self, variant);
        }
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
}

/// Returns `true` if an attribute is `#[cfg(test)]`, or `#[cfg(all(..))]` with `test` in its text.
fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else {
            return false;
        };
        let mut words = list.tokens.clone().into_iter().map(|token| token.to_string());
        attribute.path().is_ident("cfg")
            && words.next().is_some_and(|first| {
                first == "test" || (first == "all" && words.next().is_some_and(|rest| rest.contains("test")))
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_uses_and_paths_are_found_and_those_of_tests_are_not() {
        let source = r#"
            use crate::alpha::{self, Deep};
            use crate::{beta, gamma::Type as Other};
            enum Clock { System, #[cfg(test)] Virtual(crate::zeta::Clock) }
            pub(crate) fn f() { crate::delta::call("crate::string"); }
            #[cfg(test)]
            mod tests { use crate::epsilon; }
        "#;
        let names: Vec<_> = crate_names(source).unwrap().into_iter().collect();
        assert_eq!(names, ["alpha", "beta", "delta", "gamma"]);
    }

    #[test]
    fn re_exports_lead_to_their_modules() {
        let exports = re_exports("pub use error::{Error, kind::Kind}; pub use key::Slot as Part;").unwrap();
        let exports: Vec<_> = exports
            .iter()
            .map(|(name, module)| (name.as_str(), module.as_str()))
            .collect();
        assert_eq!(exports, [("Error", "error"), ("Kind", "error"), ("Part", "key")]);
    }

    #[test]
    fn a_file_belongs_to_its_first_folder() {
        assert_eq!(top_module(Path::new("log/writer.rs")).as_deref(), Some("log"));
        assert_eq!(top_module(Path::new("log.rs")).as_deref(), Some("log"));
    }
}
