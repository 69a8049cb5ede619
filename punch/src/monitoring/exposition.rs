//! Text formats of metrics: OpenMetrics, and Prometheus' own older format.

use libp2p_punch::metrics::Registry;

/// A text format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    OpenMetrics,
    Prometheus,
}

impl Format {
    /// Returns the format for the value of the header `Accept`.
    pub(super) fn of_accept(accept: Option<&str>) -> Self {
        match accept {
            Some(types) if types.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Returns a scrape.
    pub(super) fn scrape(self, registry: &Registry) -> String {
        let mut text = String::new();
        // A `String` takes all that is written.
        let _ = prometheus_client::encoding::text::encode(&mut text, registry);
        match self {
            Self::OpenMetrics => text,
            Self::Prometheus => prometheus(&text),
        }
    }
}

/// Rewrites OpenMetrics text. In the older format, the help and the type of a counter have the
/// suffix of its samples, an info is a gauge, and units have no line.
fn prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((_, words)) = help.take() {
                text.push_str(&format!("# HELP {name}{suffix} {words}\n"));
            }
            text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_has_the_names_of_the_samples_and_no_units() {
        let openmetrics = "# HELP a Help.\n# TYPE a counter\n# UNIT a seconds\na_total{x=\"1\"} 2\n\
            # HELP b Help.\n# TYPE b info\nb_info{v=\"1\"} 1\n# HELP c Help.\n# TYPE c gauge\nc 3\n# EOF\n";
        let expected = "# HELP a_total Help.\n# TYPE a_total counter\na_total{x=\"1\"} 2\n\
            # HELP b_info Help.\n# TYPE b_info gauge\nb_info{v=\"1\"} 1\n\
            # HELP c Help.\n# TYPE c gauge\nc 3\n";
        assert_eq!(prometheus(openmetrics), expected);
    }

    #[test]
    fn a_client_that_asks_for_openmetrics_gets_it() {
        let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.4";
        assert_eq!(Format::of_accept(Some(accept)), Format::OpenMetrics);
        assert_eq!(Format::of_accept(Some("*/*")), Format::Prometheus);
        assert_eq!(Format::of_accept(None), Format::Prometheus);
    }
}
