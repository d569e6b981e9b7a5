use crate::base::{Problem, Problems, SourceText};
use crate::spec::FieldProblem;

/// Gives problems in what a hook returned their place in the script: the key inside the map of the named entry, else the
/// name, else the hook.
pub(super) fn locate(source: &SourceText, problems: Vec<FieldProblem>) -> Problems {
    Problems(problems.into_iter().map(|problem| place(source, problem)).collect())
}

fn place(source: &SourceText, field: FieldProblem) -> Problem {
    let hook = if field.path.starts_with("worker") { "workers" } else { "services" };
    let begin = source.text.find(&format!("fn {hook}")).unwrap_or(0);
    let name = field.path.split('"').nth(1);
    // The entry itself rather than who needs it.
    let entry = name.and_then(|name| {
        let defined = find_word(&source.text, begin, &format!("name: \"{name}\""));
        defined.map(|at| at + "name: ".len()).or_else(|| find_word(&source.text, begin, &format!("\"{name}\"")))
    });
    let from = entry.unwrap_or(begin);
    let token = field.token.as_ref().and_then(|token| {
        let quoted = format!("\"{token}\"");
        let key = find_word(&source.text, from, &format!("{token}:"));
        key.or_else(|| find_word(&source.text, from, &quoted)).or_else(|| find_word(&source.text, from, token))
    });
    let mut problem = Problem::error(format!("{}: {}", field.path, field.message));
    problem.help = field.help;
    let offset = token.or(entry).unwrap_or(begin);
    let before = &source.text[..offset];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    problem.at(source, line, Some(column)).note(format!("returned by hook {hook}"))
}

/// Where `needle` stands, not as the tail of a longer word.
fn find_word(text: &str, from: usize, needle: &str) -> Option<usize> {
    let mut at = from;
    while let Some(found) = text.get(at..)?.find(needle) {
        let place = at + found;
        let inside_word = text[..place].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_');
        if !inside_word {
            return Some(place);
        }
        at = place + needle.len();
    }
    None
}
