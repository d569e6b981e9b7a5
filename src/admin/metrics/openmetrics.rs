use std::fmt::Write as _;

/// Whether somebody who sends this `Accept` would rather have `OpenMetrics` than the older text.
pub(super) fn is_wanted(accept: &str) -> bool {
    let weight = |media: &str| {
        let ranges = accept.split(',').map(str::trim);
        let mut found = ranges.filter(|range| range.split(';').next().is_some_and(|name| name.trim() == media));
        let parameters = |range: &str| {
            let q =
                range.split(';').skip(1).find_map(|parameter| parameter.trim().strip_prefix("q=")?.parse::<f64>().ok());
            q.unwrap_or(1.0)
        };
        found.next().map(parameters)
    };
    let plain = weight("text/plain").unwrap_or(0.0);
    weight("application/openmetrics-text").is_some_and(|wanted| wanted > 0.0 && wanted >= plain)
}

/// The same metrics as `OpenMetrics` 1.0: families of counters without `_total`, buckets as floats, no empty lines, an end.
pub(super) fn convert(text: &str) -> String {
    let mut page = String::with_capacity(text.len() + 8);
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "unknown"));
            match (kind, name.strip_suffix("_total")) {
                ("counter", Some(family)) => writeln!(page, "# TYPE {family} counter"),
                // Its samples would need another name.
                ("counter", None) => writeln!(page, "# TYPE {name} unknown"),
                _ => writeln!(page, "{line}"),
            }
            .unwrap_or_default();
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
            let family = name.strip_suffix("_total").unwrap_or(name);
            let _ = writeln!(page, "# HELP {family} {}", help.replace('"', "\\\""));
        } else if !line.starts_with('#') {
            sample(&mut page, line);
        }
    }
    page.push_str("# EOF\n");
    page
}

/// Bounds of buckets are numbers with a fraction.
fn sample(page: &mut String, line: &str) {
    let bound = line.find("le=\"").map(|begin| begin + "le=\"".len());
    if let Some(begin) = bound
        && line.split('{').next().is_some_and(|name| name.ends_with("_bucket"))
        && let Some(length) = line[begin..].find('"')
    {
        let number = &line[begin..begin + length];
        let whole = number.bytes().all(|digit| digit.is_ascii_digit());
        let fraction = if whole { ".0" } else { "" };
        let _ = writeln!(page, "{}{number}{fraction}{}", &line[..begin], &line[begin + length..]);
        return;
    }
    let _ = writeln!(page, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_given_to_whoever_prefers_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for (accept, wanted) in [
            (prometheus, true),
            ("application/openmetrics-text; version=1.0.0", true),
            ("application/openmetrics-text;q=0.2, text/plain;q=0.5", false),
            ("application/openmetrics-text;q=0", false),
            ("text/plain", false),
            ("*/*", false),
            ("", false),
        ] {
            assert_eq!(is_wanted(accept), wanted, "{accept}");
        }
    }

    #[test]
    fn families_are_named_as_openmetrics_wants() {
        let text = "# HELP a_total Counts \"a\".\n# TYPE a_total counter\na_total{x=\"le=\\\"1\\\"\"} 1\n\n\
                    # HELP b_seconds Waits.\n# TYPE b_seconds histogram\nb_seconds_bucket{x=\"y\",le=\"1\"} 1\n\
                    b_seconds_bucket{x=\"y\",le=\"0.5\"} 1\nb_seconds_bucket{x=\"y\",le=\"+Inf\"} 1\nb_seconds_sum{x=\"y\"} 1\n\n\
                    # TYPE D counter\nD 1\n# TYPE g gauge\ng 2\n";
        let expected = "# HELP a Counts \\\"a\\\".\n# TYPE a counter\na_total{x=\"le=\\\"1\\\"\"} 1\n\
                        # HELP b_seconds Waits.\n# TYPE b_seconds histogram\nb_seconds_bucket{x=\"y\",le=\"1.0\"} 1\n\
                        b_seconds_bucket{x=\"y\",le=\"0.5\"} 1\nb_seconds_bucket{x=\"y\",le=\"+Inf\"} 1\nb_seconds_sum{x=\"y\"} 1\n\
                        # TYPE D unknown\nD 1\n# TYPE g gauge\ng 2\n# EOF\n";
        assert_eq!(convert(text), expected);
    }
}
