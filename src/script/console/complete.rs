use rhai::{Engine, LexError, ParseErrorType};

/// Whether `code` is whole, be it right or wrong: where it is not, somebody is still writing it. That is what the parser of the
/// language says: an error at the very end is mended by what comes next.
pub fn is_complete(code: &str) -> bool {
    let Err(cause) = Engine::new_raw().compile(code) else { return true };
    let position = cause.position();
    match &*cause.0 {
        // The error is where it begins; a text in quotes ends with its line.
        ParseErrorType::BadInput(LexError::UnterminatedString) => {
            let line = position.line().and_then(|line| code.lines().nth(line - 1)).unwrap_or_default();
            line.chars().nth(position.position().unwrap_or(1) - 1) != Some('`')
        }
        _ => {
            let written = code.trim_end();
            let (lines, width) = (written.lines().count(), written.lines().last().unwrap_or_default().chars().count());
            let end = (lines, width);
            position.line().is_some_and(|line| (line, position.position().unwrap_or(0)) <= end)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_complete;

    #[test]
    fn brackets_and_texts_have_to_be_closed() {
        for whole in [
            "",
            "1 + 1",
            "let x = #{ a: [1, 2] };",
            "fn f(x) {\n  x\n}",
            "print(\"(\")",
            "let a = `one\ntwo`;",
            "// (",
            "1 2",
            "let = 3",
            "foo)",
            "print(\"not ended)",
            "if x {\n  1 1\n}",
        ] {
            assert!(is_complete(whole), "{whole}");
        }
        for part in ["fn f(x) {", "print(1,", "[1, 2", "#{ a: 1,", "let a = `one", "1 +", "if x {\n  1\n", "`${1 + "] {
            assert!(!is_complete(part), "{part}");
        }
    }
}
