//! What `--dry-run` shows: one edit of a text as a unified diff.
//!
//! Not a general diff: an installation changes one place of a file, so one hunk tells all. `patch` reads it.

/// Lines of context around the hunk.
const CONTEXT: usize = 3;

/// The change from `old` to `new` as a unified diff with these names; an absent text is a file that is not there.
#[must_use]
pub(super) fn unified(old_name: &str, old: Option<&str>, new_name: &str, new: Option<&str>) -> String {
    let (old_lines, new_lines) = (lines(old), lines(new));
    let shorter = old_lines.len().min(new_lines.len());
    let same = |pair: &(&&str, &&str)| pair.0 == pair.1;
    let head = old_lines.iter().zip(&new_lines).take_while(same).count();
    let tail = old_lines.iter().rev().zip(new_lines.iter().rev()).take(shorter - head).take_while(same).count();
    let start = head.saturating_sub(CONTEXT);
    let old_end = (old_lines.len() - tail + CONTEXT).min(old_lines.len());
    let new_end = (new_lines.len() - tail + CONTEXT).min(new_lines.len());

    let mut diff = format!("--- {old_name}\n+++ {new_name}\n");
    diff += &format!("@@ -{} +{} @@\n", range(start, old_end), range(start, new_end));
    put(&mut diff, ' ', &old_lines[start..head]);
    put(&mut diff, '-', &old_lines[head..old_lines.len() - tail]);
    put(&mut diff, '+', &new_lines[head..new_lines.len() - tail]);
    put(&mut diff, ' ', &old_lines[old_lines.len() - tail..old_end]);
    diff
}

fn lines(text: Option<&str>) -> Vec<&str> {
    text.unwrap_or_default().split_inclusive('\n').collect()
}

/// A range of lines as a hunk's head has it: counted from one; an empty range names the line before it.
fn range(start: usize, end: usize) -> String {
    match end - start {
        0 => format!("{start},0"),
        1 => format!("{}", start + 1),
        count => format!("{},{count}", start + 1),
    }
}

fn put(diff: &mut String, mark: char, lines: &[&str]) {
    for line in lines {
        diff.push(mark);
        diff.push_str(line);
        if !line.ends_with('\n') {
            diff.push_str("\n\\ No newline at end of file\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::unified;

    #[test]
    fn shows_an_insertion_with_its_context() {
        let old = "1\n2\n3\n4\n5\n6\n7\n8\n";
        let new = "1\n2\n3\n4\nnew\n5\n6\n7\n8\n";
        let wanted = "--- a\n+++ b\n@@ -2,6 +2,7 @@\n 2\n 3\n 4\n+new\n 5\n 6\n 7\n";
        assert_eq!(unified("a", Some(old), "b", Some(new)), wanted);
    }

    #[test]
    fn shows_a_new_file() {
        assert_eq!(unified("/dev/null", None, "b", Some("x\n")), "--- /dev/null\n+++ b\n@@ -0,0 +1 @@\n+x\n");
    }

    #[test]
    fn says_where_a_last_line_break_is_missing() {
        let wanted = "--- a\n+++ b\n@@ -1 +1 @@\n-x\n\\ No newline at end of file\n+y\n\\ No newline at end of file\n";
        assert_eq!(unified("a", Some("x"), "b", Some("y")), wanted);
    }

    #[test]
    fn repeated_lines_are_not_counted_twice() {
        let wanted = "--- a\n+++ b\n@@ -1,2 +1,3 @@\n }\n }\n+}\n";
        assert_eq!(unified("a", Some("}\n}\n"), "b", Some("}\n}\n}\n")), wanted);
    }
}
