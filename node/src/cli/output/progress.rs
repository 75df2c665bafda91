//! What is shown while a command waits: on a terminal, lines that are redrawn in place; elsewhere, a line
//! for each change.

use std::io::{self, Write};

/// Draws lines over the ones it drew before.
#[derive(Debug)]
pub struct Progress {
    live: bool,
    width: usize,
    shown: Vec<String>,
}

impl Progress {
    /// `live` redraws, cutting lines at `width` characters.
    pub fn new(live: bool, width: usize) -> Self {
        Self { live, width: width.max(20), shown: Vec::new() }
    }

    /// Shows these lines in place of the ones before. Away from a terminal, only those that are new.
    ///
    /// # Errors
    /// If `out` fails.
    pub fn show(&mut self, out: &mut dyn Write, lines: Vec<String>) -> io::Result<()> {
        if lines == self.shown {
            return Ok(());
        }
        if self.live {
            self.clear(out)?;
            for line in &lines {
                let cut: String = line.chars().take(self.width - 1).collect();
                writeln!(out, "{cut}")?;
            }
        } else {
            for line in lines.iter().filter(|line| !self.shown.contains(line)) {
                writeln!(out, "{line}")?;
            }
        }
        self.shown = lines;
        out.flush()
    }

    /// Takes the lines off the terminal.
    ///
    /// # Errors
    /// If `out` fails.
    pub fn clear(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.live && !self.shown.is_empty() {
            // Up to the first line, then everything below it is erased.
            write!(out, "\x1b[{}A\r\x1b[J", self.shown.len())?;
        }
        self.shown.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(live: bool, frames: &[&[&str]]) -> String {
        let mut out = Vec::new();
        let mut progress = Progress::new(live, 40);
        for frame in frames {
            let lines = frame.iter().map(ToString::to_string).collect();
            progress.show(&mut out, lines).expect("a vector takes everything");
        }
        String::from_utf8(out).expect("it is text")
    }

    #[test]
    fn elsewhere_each_change_is_a_line() {
        let frames: &[&[&str]] =
            &[&["web 0/2", "1 pending"], &["web 0/2", "1 running"], &["web 1/2", "1 running"]];
        assert_eq!(drawn(false, frames), "web 0/2\n1 pending\n1 running\nweb 1/2\n");
    }

    #[test]
    fn on_a_terminal_lines_are_redrawn() {
        assert_eq!(drawn(true, &[&["a", "b"], &["a", "b"], &["c"]]), "a\nb\n\x1b[2A\r\x1b[Jc\n");
    }

    #[test]
    fn a_line_never_wraps() {
        assert_eq!(drawn(true, &[&[&"x".repeat(100)]]).trim_end().len(), 39);
    }
}
