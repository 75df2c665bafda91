//! Lists, as the commands `ls` and `ps` print them: a table, or what `--format` says, or ids alone.

use super::template::Template;
use super::value::Struct;
use super::{inspect, table};
use crate::rpc::stale::Age;
use anyhow::{Result, anyhow};

/// How a list can be printed.
#[derive(Debug)]
pub struct Listing {
    /// The names of the columns that a template can ask for, and their headings.
    pub columns: &'static [(&'static str, &'static str)],
    /// The table that is printed when nothing else is asked for.
    pub table: &'static str,
    /// What `--format raw` prints of a row.
    pub raw: &'static str,
}

/// The options common to all lists.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// Print only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// `table`, `table TEMPLATE`, `json`, `raw`, or a template such as '{{.ID}} {{.Name}}'
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Show only what matches; may be repeated
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    pub filters: Vec<super::filter::Filter>,
    /// How old the rows may be, if they may be old.
    #[arg(skip)]
    pub age: Option<Age>,
}

impl Listing {
    /// The rows, each a structure of the columns, as `options` ask. `id` names the column that is printed
    /// when only ids are wanted.
    ///
    /// # Errors
    /// If the format is not a template or asks for a column that is not there.
    pub fn print(&self, rows: &[Struct], id: &str, options: &Options) -> Result<String> {
        if options.quiet && options.format.is_none() {
            let id = |row: &Struct| row.get(id).map(|id| format!("{id}\n")).unwrap_or_default();
            return Ok(rows.iter().map(id).collect());
        }
        let unescaped =
            options.format.as_deref().map(|format| format.replace("\\t", "\t").replace("\\n", "\n"));
        match unescaped.as_deref().map(str::trim_end) {
            None | Some("" | "table") => self.table(self.table, rows),
            Some("json") => {
                let rows = rows.iter().map(|row| inspect::dated(row.clone().into(), options.age));
                Ok(rows.map(|row| row.to_json() + "\n").collect())
            }
            Some("raw") => self.lines(self.raw, rows),
            Some(format) => match format.strip_prefix("table") {
                Some(columns) if columns.starts_with(char::is_whitespace) => self.table(columns.trim(), rows),
                _ => self.lines(format, rows),
            },
        }
    }

    fn table(&self, template: &str, rows: &[Struct]) -> Result<String> {
        let headings = self
            .columns
            .iter()
            .fold(Struct::new("heading"), |row, (name, heading)| row.with(*name, *heading));
        let parsed = Template::parse(template)?;
        let rows = self.lines(template, rows)?;
        let heading = parsed.heading(&headings.into()).map_err(|error| self.explain(&error))?;
        Ok(table::align(&format!("{heading}\n{rows}")))
    }

    fn lines(&self, template: &str, rows: &[Struct]) -> Result<String> {
        let template = Template::parse(template)?;
        let line = |row: &Struct| {
            Ok(template.fill(&row.clone().into()).map_err(|error| self.explain(&error))? + "\n")
        };
        rows.iter().map(line).collect()
    }

    fn explain(&self, error: &super::template::ExecError) -> anyhow::Error {
        let names: Vec<&str> = self.columns.iter().map(|(name, _)| *name).collect();
        anyhow!("{error}\n  the columns are {}", names.join(", "))
    }
}
