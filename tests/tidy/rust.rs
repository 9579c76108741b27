//! What the rules want to know of a Rust file: its functions, its imports, its tokens, and which lines
//! are test code. Tokens rather than text, so that comments and strings do not count.

use std::ops::RangeInclusive;

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// A parsed file.
#[derive(Default)]
pub(crate) struct Rust {
    pub(crate) functions: Vec<Function>,
    /// Full paths of all imports (`std::fs::File`, `std::env::*`) with their lines.
    pub(crate) imports: Vec<(String, usize)>,
    /// Every token in order, brackets included, with its line.
    pub(crate) tokens: Vec<(String, usize)>,
    /// Modules that are declared `#[cfg(test)] mod name;`.
    pub(crate) test_modules: Vec<String>,
    /// Lines of items behind `#[cfg(test)]`.
    test_lines: Vec<RangeInclusive<usize>>,
}

/// A function with a body.
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) line: usize,
    /// From the line of `fn` to that of the closing brace.
    pub(crate) length: usize,
}

impl Rust {
    pub(crate) fn parse(text: &str) -> syn::Result<Self> {
        let file = syn::parse_file(text)?;
        let mut rust = Self::default();
        rust.visit_file(&file);
        let text = text.strip_prefix("#!").filter(|rest| !rest.starts_with('[')).map_or(text, |rest| {
            // A shebang line is not Rust; its line end stays, for the numbering.
            rest.find('\n').map_or("", |end| &rest[end..])
        });
        flatten(text.parse()?, &mut rust.tokens);
        Ok(rust)
    }

    /// Whether a line belongs to an inline test module or another item behind `#[cfg(test)]`.
    pub(crate) fn is_test_line(&self, line: usize) -> bool {
        self.test_lines.iter().any(|lines| lines.contains(&line))
    }

    /// How many lines are test code.
    pub(crate) fn test_line_count(&self) -> usize {
        self.test_lines.iter().map(|lines| lines.end() - lines.start() + 1).sum()
    }

    /// Lines where these tokens stand one after the other.
    pub(crate) fn lines_with(&self, tokens: &[&str]) -> Vec<usize> {
        let fits = |window: &&[(String, usize)]| window.iter().zip(tokens).all(|((token, _), wanted)| token == wanted);
        self.tokens.windows(tokens.len()).filter(fits).map(|window| window[0].1).collect()
    }

    fn function(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let line = signature.fn_token.span.start().line;
        let length = block.brace_token.span.close().end().line - line + 1;
        self.functions.push(Function { name: signature.ident.to_string(), line, length });
    }

    fn import(&mut self, path: &str, tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(step) => self.import(&format!("{path}{}::", step.ident), &step.tree),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.import(path, tree)),
            syn::UseTree::Name(name) if name.ident == "self" => {
                self.imports.push((path.trim_end_matches("::").to_owned(), name.span().start().line));
            }
            syn::UseTree::Name(name) => self.imports.push((format!("{path}{}", name.ident), name.span().start().line)),
            syn::UseTree::Rename(name) => {
                self.imports.push((format!("{path}{}", name.ident), name.span().start().line));
            }
            syn::UseTree::Glob(glob) => self.imports.push((format!("{path}*"), glob.span().start().line)),
        }
    }
}

impl<'ast> Visit<'ast> for Rust {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if attributes(item).iter().any(is_cfg_test) {
            let span = item.span();
            self.test_lines.push(span.start().line..=span.end().line);
            if let syn::Item::Mod(syn::ItemMod { ident, content: None, .. }) = item {
                self.test_modules.push(ident.to_string());
            }
        }
        visit::visit_item(self, item);
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.function(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.function(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.function(&function.sig, block);
        }
        visit::visit_trait_item_fn(self, function);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.import("", &item.tree);
    }
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Macro(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// `#[cfg(test)]` and `#[cfg(all(test, …))]`, but not `any` or `not`, which also hold outside tests.
fn is_cfg_test(attribute: &syn::Attribute) -> bool {
    let syn::Meta::List(list) = &attribute.meta else { return false };
    if !list.path.is_ident("cfg") {
        return false;
    }
    let mut tokens = Vec::new();
    flatten(list.tokens.clone(), &mut tokens);
    let words: Vec<&str> = tokens.iter().map(|(word, _)| word.as_str()).collect();
    matches!(words.as_slice(), ["test"] | ["all", "(", "test", ..])
}

fn flatten(stream: TokenStream, into: &mut Vec<(String, usize)>) {
    for token in stream {
        match token {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    proc_macro2::Delimiter::Parenthesis => ("(", ")"),
                    proc_macro2::Delimiter::Brace => ("{", "}"),
                    proc_macro2::Delimiter::Bracket => ("[", "]"),
                    proc_macro2::Delimiter::None => ("", ""),
                };
                into.push((open.to_owned(), group.span_open().start().line));
                flatten(group.stream(), into);
                into.push((close.to_owned(), group.span_close().start().line));
            }
            single => into.push((single.to_string(), single.span().start().line)),
        }
    }
}

#[test]
fn functions_imports_tokens_and_test_lines_are_seen() {
    let rust = Rust::parse(
        "//! head\n\
         use std::{env, fs::{self, File}};\n\
         fn short() {}\n\
         impl S {\n    fn long(&self) {\n        tokio::select! { _ = a => tokio::spawn(b) }\n    }\n}\n\
         #[cfg(test)]\n\
         mod tests {\n    #[test]\n    fn f() {}\n}\n\
         #[cfg(all(test, unix))]\nmod fakes;\n\
         #[cfg(any(test, unix))]\nmod real;\n",
    )
    .unwrap();
    let functions: Vec<_> = rust.functions.iter().map(|f| (f.name.as_str(), f.line, f.length)).collect();
    assert_eq!(functions, [("short", 3, 1), ("long", 5, 3), ("f", 12, 1)]);
    let imports: Vec<_> = rust.imports.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(imports, ["std::env", "std::fs", "std::fs::File"]);
    assert_eq!(rust.lines_with(&["tokio", ":", ":", "spawn", "("]), [6], "inside a macro too");
    assert_eq!(rust.test_modules, ["fakes"]);
    assert_eq!(rust.test_line_count(), 7);
    assert!(rust.is_test_line(12) && !rust.is_test_line(6) && !rust.is_test_line(17));
}

#[test]
fn comments_and_strings_are_no_tokens() {
    let rust = Rust::parse("// sleep(1)\n/// sleep(2)\nfn f() { g(\"sleep(3)\"); /* sleep(4) */ }").unwrap();
    assert!(rust.lines_with(&["sleep", "("]).is_empty());
}
