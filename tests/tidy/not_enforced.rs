//! The manual's list of what is accepted and not enforced, generated from the tables of
//! `mesh_core::policy::unenforced`.

use std::fmt::Write;

use syn::visit::{self, Visit};

use crate::pages::assert_golden;
use crate::tree::read;

const SOURCE: &str = "mesh-core/src/policy/unenforced.rs";
const PAGE: &str = "src/manual/not_enforced.md";

const HEAD: &str = "\
# Accepted and not enforced

What the policy model holds and this version does not do. Nothing of it is dropped in silence: the control
plane reports it as a finding where a manifest asks for it, a process in its `/config_dump` where it arrives
over xDS. The list is generated from the code (`UPDATE_GOLDEN=1 cargo test --test tidy`).

Names are those of the fields of `mesh_core::policy`.

| Of | Field | What happens |
|---|---|---|
";

/// `(table, field, effect)` of every line of the tables.
#[derive(Default)]
struct Tables {
    table: String,
    lines: Vec<(String, String, String)>,
}

impl<'ast> Visit<'ast> for Tables {
    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.table = item.ident.to_string().to_lowercase();
        visit::visit_item_const(self, item);
    }

    fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
        let is_line = matches!(&*call.func, syn::Expr::Path(path) if path.path.is_ident("line"));
        let texts: Vec<String> = call.args.iter().filter_map(text).collect();
        if let (true, [field, effect]) = (is_line, texts.as_slice()) {
            self.lines.push((self.table.clone(), field.clone(), effect.clone()));
        }
        visit::visit_expr_call(self, call);
    }
}

fn text(expression: &syn::Expr) -> Option<String> {
    match expression {
        syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value()),
        _ => None,
    }
}

fn page(source: &str) -> String {
    let mut tables = Tables::default();
    tables.visit_file(&syn::parse_file(source).expect("rustc takes it too"));
    let mut page = HEAD.to_owned();
    for (table, field, effect) in tables.lines {
        writeln!(page, "| {table} | `{field}` | {effect} |").unwrap();
    }
    page
}

#[test]
fn the_list_of_what_is_not_enforced_is_complete() {
    let page = page(&read(SOURCE));
    assert!(page.lines().count() > HEAD.lines().count(), "the tables of {SOURCE} have another shape now");
    assert_golden(PAGE, &page);
}

#[test]
fn a_line_of_a_table_becomes_a_row() {
    let source = "const CLUSTER: &[Line<Cluster>] = &[\n\
        line(\"outlier\", \"failing endpoints are not ejected\", |c| c.outlier.is_some()),\n\
        other(\"no\", \"row\", |c| true),\n\
        ];";
    assert_eq!(page(source), format!("{HEAD}| cluster | `outlier` | failing endpoints are not ejected |\n"));
}
