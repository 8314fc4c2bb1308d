//! One self-contained HTML page: nothing is fetched, light and dark follow the reader's system, plots are
//! SVG inside of it and pictures lie in it as PNG.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::plot::escape;
use crate::Result;
use crate::diffusion::image::Image;

/// The style of every page.
const STYLE: &str = include_str!("page.css");
/// Sliders over pictures; the page reads the same without it, with the last pictures.
const SCRIPT: &str = include_str!("page.js");

/// The rules of [`STYLE`] that plots need, with colours in place of variables.
pub(super) fn plot_style(dark: bool) -> String {
    const RULES: [&str; 10] =
        ["svg text", ".line", ".grid", ".axis", ".floor", ".s0", ".s2", ".s4", ".s6", ".fill"];
    let palettes =
        || STYLE.split(":root").skip(1).map(|block| block.split('}').next().unwrap_or(""));
    let palette = palettes().nth(usize::from(dark)).unwrap_or("");
    let colours = palette.split(['{', ';']).filter_map(|rule| rule.trim().split_once(": "));
    let colours: Vec<(&str, &str)> = colours.filter(|(name, _)| name.starts_with("--")).collect();
    let lines = STYLE.lines().filter(|line| RULES.iter().any(|rule| line.starts_with(rule)));
    let mut style: String = lines.flat_map(|line| [line, "\n"]).collect();
    style
        .push_str(".paper { fill: var(--paper); }\ntext { font-family: system-ui, sans-serif; }\n");
    for (name, colour) in colours {
        style = style.replace(&format!("var({name})"), colour);
    }
    style
}

/// A page that grows from top to bottom. Words are escaped; `html` is not.
#[derive(Clone, Debug)]
pub struct Page {
    title: String,
    body: String,
    /// Plots so far, which are numbered.
    figures: usize,
}

impl Page {
    pub fn new(title: &str) -> Page {
        let body = format!("<h1>{}</h1>\n", escape(title));
        Page { title: title.to_string(), body, figures: 0 }
    }
    pub fn heading(&mut self, words: &str) {
        let _ = writeln!(self.body, "<h2>{}</h2>", escape(words));
    }
    pub fn paragraph(&mut self, words: &str) {
        let _ = writeln!(self.body, "<p>{}</p>", escape(words));
    }
    /// The paragraph below the title.
    pub fn lead(&mut self, words: &str) {
        let _ = writeln!(self.body, "<p class=\"lead\">{}</p>", escape(words));
    }
    /// A plot with a number, a title and what there is to see in it. The SVG is drawn for that title.
    pub fn figure(&mut self, title: &str, svg: &str, caption: &str) {
        self.figures += 1;
        let _ = writeln!(
            self.body,
            "<figure>{svg}<figcaption><b>Figure {}. {}.</b> {}</figcaption></figure>",
            self.figures,
            escape(title),
            escape(caption)
        );
    }
    /// A table; cells that begin like a number stand at the right.
    pub fn table(&mut self, headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
        let cell = |tag: &str, words: &str| {
            let first = words.chars().next().unwrap_or(' ');
            let right = first.is_ascii_digit() || "−+–∞≤≥".contains(first);
            let class = if right { " class=\"n\"" } else { "" };
            format!("<{tag}{class}>{}</{tag}>", escape(words))
        };
        self.body.push_str("<div class=\"wide\"><table><thead><tr>");
        headings.iter().for_each(|words| self.body.push_str(&cell("th", words)));
        self.body.push_str("</tr></thead><tbody>\n");
        for row in rows {
            self.body.push_str("<tr>");
            row.iter().for_each(|words| self.body.push_str(&cell("td", words)));
            self.body.push_str("</tr>\n");
        }
        self.body.push_str("</tbody></table></div>\n");
    }
    /// Something that is HTML already.
    pub fn html(&mut self, html: &str) {
        self.body.push_str(html);
    }

    /// As the function of that name.
    pub fn slides(&mut self, names: &[&str], rows: &[Vec<Image>], labels: &[String]) -> Result<()> {
        self.body.push_str(&slides(names, rows, labels)?);
        Ok(())
    }

    /// The whole document.
    pub fn finish(&self) -> String {
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n\
             <style>\n{STYLE}</style></head>\n<body><main>\n{}</main>\n<script>\n{SCRIPT}</script></body></html>\n",
            escape(&self.title),
            self.body
        )
    }
}

/// Rows of pictures side by side, one of which is seen at a time: a slider chooses. Each row has one
/// picture for each of `names`.
pub fn slides(names: &[&str], rows: &[Vec<Image>], labels: &[String]) -> Result<String> {
    let Some(last) = rows.len().checked_sub(1) else { return Ok(String::new()) };
    let mut out = String::from("<div class=\"slides\">");
    for (column, name) in names.iter().enumerate() {
        out.push_str("<figure>");
        for (i, row) in rows.iter().enumerate() {
            let hidden = if i == last { "" } else { " hidden" };
            if let Some(image) = row.get(column) {
                let words = format!("{name}, {}", labels.get(i).map_or("", String::as_str));
                let _ = write!(
                    out,
                    "<img data-step=\"{i}\"{hidden} alt=\"{}\" src=\"{}\">",
                    escape(&words),
                    data_uri(image)?
                );
            }
        }
        let _ = write!(out, "<figcaption>{}</figcaption></figure>", escape(name));
    }
    if last > 0 {
        let labels: Vec<String> = labels.iter().map(|l| escape(l)).collect();
        let _ = write!(
            out,
            "<label><input type=\"range\" min=\"0\" max=\"{last}\" value=\"{last}\" data-labels=\"{}\"> <output>{}</output></label>",
            labels.join("|"),
            labels.last().map_or("", String::as_str)
        );
    }
    out.push_str("</div>\n");
    Ok(out)
}

/// A picture as a PNG inside of a URL.
fn data_uri(image: &Image) -> Result<String> {
    Ok(format!("data:image/png;base64,{}", STANDARD.encode(image.encode_png(&[])?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_needs_nothing_else() {
        let mut page = Page::new("a < b");
        page.lead("what & why");
        page.table(&["name", "value"], [vec!["x".to_string(), "1.5".to_string()]]);
        let image = Image::new(1, 1, vec![1, 2, 3]).unwrap();
        let rows = [vec![image.clone(), image.clone()], vec![image.clone(), image]];
        let labels = ["step 0".to_string(), "step 1".to_string()];
        page.slides(&["baseline", "int4"], &rows, &labels).unwrap();
        page.figure("t", "<svg></svg>", "c");
        let html = page.finish();
        assert!(html.contains("<title>a &lt; b</title>") && html.contains("what &amp; why"));
        assert_eq!(html.matches("src=\"data:image/png;base64,").count(), 4);
        assert_eq!(
            (html.matches(" hidden ").count(), html.matches("type=\"range\"").count()),
            (2, 1)
        );
        assert!(html.contains("<td class=\"n\">1.5</td>") && html.contains("Figure 1. t."));
        // No address of anything outside, neither to load nor to follow.
        assert!(!html.contains("http") && !html.contains("url(") && !html.contains("@import"));
    }
}
