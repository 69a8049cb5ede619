//! SVG elements as text.

use std::fmt::{self, Write as _};

/// Point of the picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
}

/// Shorthand for a point.
pub(crate) fn at(x: f64, y: f64) -> Point {
    Point { x, y }
}

/// Position and size, in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Area {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) width: f64,
    pub(crate) height: f64,
}

/// Colours of the parts that lie on the background; they have a dark twin in [`STYLE`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ink {
    Strong,
    Soft,
    Faint,
}

impl Ink {
    /// Class for a dark scheme, and the colour without one.
    fn of(self) -> (&'static str, &'static str) {
        match self {
            Ink::Strong => ("strong", "#1f2328"),
            Ink::Soft => ("soft", "#59636e"),
            Ink::Faint => ("faint", "#d1d9e0"),
        }
    }
}

/// Colours of the dark scheme. A viewer without schemes shows dark ink on the white background.
const STYLE: &str = "@media (prefers-color-scheme: dark) { .paper { fill: #0d1117 } .strong { fill: #e6edf3 } \
     .soft { fill: #9198a1 } .faint { fill: #3d444d } }";
const FONT: &str = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif";

/// Alignment of a text to its point.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        })
    }
}

/// Size and weight of a text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Face {
    pub(crate) size: f64,
    pub(crate) bold: bool,
    pub(crate) anchor: Anchor,
}

/// A face that is not bold.
pub(crate) fn plain(size: f64, anchor: Anchor) -> Face {
    Face { size, bold: false, anchor }
}

/// A bold face.
pub(crate) fn bold(size: f64, anchor: Anchor) -> Face {
    Face { size, bold: true, anchor }
}

/// A drawing under way.
#[derive(Debug, Default)]
pub(crate) struct Canvas(String);

impl Canvas {
    /// A filled rectangle, with corners of this radius.
    pub(crate) fn rect(&mut self, area: Area, radius: f64, fill: &str, opacity: f64) {
        let Area { x, y, width, height } = area;
        let opacity = if opacity < 1.0 { format!(" fill-opacity=\"{opacity}\"") } else { String::new() };
        let radius = if radius > 0.0 { format!(" rx=\"{radius}\"") } else { String::new() };
        let _ = writeln!(
            self.0,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"{radius} fill=\"{fill}\"{opacity}/>"
        );
    }

    /// A rectangle in ink.
    pub(crate) fn ink(&mut self, area: Area, ink: Ink) {
        let Area { x, y, width, height } = area;
        let (class, fill) = ink.of();
        let _ = writeln!(
            self.0,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\"/>"
        );
    }

    /// A text in ink on the background.
    pub(crate) fn text(&mut self, at: Point, face: Face, ink: Ink, text: &str) {
        let (class, fill) = ink.of();
        self.letters(at, face, &format!("class=\"{class}\" fill=\"{fill}\""), text);
    }

    /// A white text on a colour.
    pub(crate) fn white(&mut self, at: Point, face: Face, text: &str) {
        self.letters(at, face, "fill=\"#ffffff\"", text);
    }

    fn letters(&mut self, at: Point, face: Face, paint: &str, text: &str) {
        let Point { x, y } = at;
        let Face { size, bold, anchor } = face;
        let weight = if bold { " font-weight=\"600\"" } else { "" };
        let _ = writeln!(
            self.0,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" text-anchor=\"{anchor}\"{weight} {paint}>{}</text>",
            escaped(text)
        );
    }

    /// Groups the drawings of `inside`; a pointer over them shows the title.
    pub(crate) fn group(&mut self, title: &str, inside: impl FnOnce(&mut Self)) {
        let _ = writeln!(self.0, "<g><title>{}</title>", escaped(title));
        inside(self);
        self.0.push_str("</g>\n");
    }

    /// The whole document.
    pub(crate) fn document(self, width: f64, height: f64, title: &str) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"{FONT}\" role=\"img\">\n\
             <title>{}</title>\n<style>{STYLE}</style>\n\
             <defs><pattern id=\"hatch\" width=\"7\" height=\"7\" patternUnits=\"userSpaceOnUse\" \
             patternTransform=\"rotate(45)\"><rect width=\"2\" height=\"7\" fill=\"#ffffff\"/></pattern></defs>\n\
             <rect class=\"paper\" width=\"{width:.0}\" height=\"{height:.0}\" rx=\"10\" fill=\"#ffffff\"/>\n{}</svg>\n",
            escaped(title),
            self.0
        )
    }
}

/// Escapes text for use between tags and in attributes (XML 1.0 §2.4).
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
