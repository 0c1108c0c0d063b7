//! Chromium shows a page as it is meant: without complaints, in both colour schemes, with everything in its place.

use std::path::Path;
use std::process::Command;

use ringlock_perf::report::html::page;

use crate::sample::{self, run};

const LIGHT: &str = "1";
const DARK: &str = "0";

/// Widths of a screen, and of a small telephone's.
const WIDE: u32 = 1280;
const NARROW: u32 = 360;

/// What is measured in the page, as one text: the scheme, the width that would have to be scrolled, the plots, and texts
/// that are outside of their plots or on each other.
const MEASURE: &str = r"<script>
addEventListener('load', () => {
  const found = [];
  const plots = [...document.querySelectorAll('svg.plot')];
  for (const plot of plots) {
    const name = plot.getAttribute('aria-label');
    const box = plot.getBoundingClientRect();
    if (box.width < 250 || box.height < 30) found.push(`small: ${name} ${box.width}x${box.height}`);
    const texts = [...plot.querySelectorAll('text')].filter(text => text.textContent.trim());
    if (!texts.length) found.push(`no text: ${name}`);
    const boxes = texts.map(text => text.getBoundingClientRect());
    boxes.forEach((text, at) => {
      const said = texts[at].textContent.trim();
      if (text.width < 1 || text.left < box.left - 1 || text.right > box.right + 1 || text.top < box.top - 1 || text.bottom > box.bottom + 1)
        found.push(`clipped: ${name}: ${said}`);
      boxes.slice(at + 1).forEach((other, next) => {
        if (text.left < other.right - 1 && other.left < text.right - 1 && text.top + 3 < other.bottom - 3 && other.top + 3 < text.bottom - 3)
          found.push(`overlap: ${name}: ${said}, ${texts[at + 1 + next].textContent.trim()}`);
      });
    });
    for (const line of plot.querySelectorAll('polyline, line, rect, circle'))
      if (getComputedStyle(line).stroke === 'none' && getComputedStyle(line).fill === 'none')
        found.push(`not drawn: ${name}: ${line.outerHTML}`);
  }
  const result = document.createElement('pre');
  result.className = 'result';
  result.title = window.name;
  result.textContent = [
    matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light',
    getComputedStyle(document.body).backgroundColor,
    `width=${innerWidth}`,
    `plots=${plots.length}`,
    `beyond=${document.documentElement.scrollWidth - document.documentElement.clientWidth}`,
    `found=${found.length}`, ...found,
  ].join('|');
  parent.document.body.append(result);
});
</script>";

/// Everything that a page can have, in few plots.
fn pages() -> Vec<String> {
    let several = |sample: fn(f64) -> serde_json::Value| {
        [
            "nginx 1.22",
            "a gateway with a name that is much too long for the label of a bar",
            "ringlock",
        ]
        .iter()
        .zip([1.0, 3.0, 0.4])
        .map(|(label, scale)| run(label, sample(scale)))
        .collect::<Vec<_>>()
    };
    let alone = |sample: fn(f64) -> serde_json::Value| vec![run("ringlock", sample(1.0))];
    let search = |scale| with_work(sample::search(scale), "search");
    let mut all: Vec<_> = [sample::closed, sample::open, search, sample::idle]
        .map(several)
        .concat();
    all.extend(alone(|scale| with_work(sample::closed(scale), "alone")));
    let one = alone(sample::open);
    [all, one, alone(sample::search), alone(sample::idle)]
        .iter()
        .map(|runs| page(runs).unwrap())
        .collect()
}

fn with_work(mut value: serde_json::Value, work: &str) -> serde_json::Value {
    value["work"] = work.into();
    value
}

/// What Chromium says of a page: the document as it is in the end, and its complaints.
fn shown(folder: &Path, page: &str, scheme: &str) -> (String, Vec<String>) {
    let file = folder.join("page.html");
    std::fs::write(&file, page).unwrap();
    let profile = tempfile::tempdir_in(folder).unwrap();
    let output = Command::new("timeout")
        .args(["60", "chromium", "--headless", "--dump-dom", "--enable-logging=stderr"])
        // Chromium's own sandbox does not work for root, nor in a container.
        .args([
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ])
        .arg(format!("--blink-settings=preferredColorScheme={scheme}"))
        .arg("--window-size=1400,2000")
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", file.display()))
        .output()
        .expect("scripts/setup installs chromium, and coreutils has timeout");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{:?}: {said}", output.status);
    let complaints = said.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned);
    (String::from_utf8(output.stdout).unwrap(), complaints.collect())
}

#[test]
fn chromium_has_nothing_to_complain_of_in_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let page = &pages()[0];
    let (document, complaints) = shown(folder.path(), page, LIGHT);
    assert!(document.contains("Made by ringlock-perf"), "{document}");
    assert_eq!(complaints, [""; 0]);
    // The page's policy holds back what should not be there, and the test would hear of it.
    let (document, complaints) = shown(folder.path(), &with_measuring(page, ""), LIGHT);
    assert!(!document.contains("class=\"result\""), "{document}");
    let blocked = |line: &String| line.contains("Content Security Policy");
    assert!(complaints.iter().any(blocked), "{complaints:?}");
}

#[test]
fn plots_are_whole_in_light_and_in_dark_and_on_a_narrow_screen() {
    let folder = tempfile::tempdir().unwrap();
    let pages = pages();
    let frames: Vec<_> = pages
        .iter()
        .flat_map(|page| [WIDE, NARROW].map(|width| (page, width)))
        .collect();
    for (scheme, name, back) in [
        (LIGHT, "light", "rgb(255, 255, 255)"),
        (DARK, "dark", "rgb(20, 23, 26)"),
    ] {
        let expected = |(page, width): &(&String, u32)| {
            let plots = page.matches("<svg class=\"plot\"").count();
            format!("{name}|{back}|width={width}|plots={plots}|beyond=0|found=0")
        };
        let expected: Vec<_> = frames.iter().map(expected).collect();
        assert_eq!(measured(folder.path(), &frames, scheme), expected);
    }
    // What is not in its place is found.
    let texts = "<text x='-90' y='30'>outside</text><text x='90' y='300'>one</text><text x='95' y='300'>other</text>";
    let wrong = pages[1].replacen("</title>\n", &format!("</title>{texts}"), 1);
    let result = measured(folder.path(), &[(&wrong, WIDE)], LIGHT).concat();
    for found in [
        "clipped: Latency by percentile: outside",
        "overlap: Latency by percentile: one, other",
    ] {
        assert!(result.contains(found), "{result}");
    }
}

/// What the script has measured in pages as wide as this, in their order.
fn measured(folder: &Path, pages: &[(&String, u32)], scheme: &str) -> Vec<String> {
    // A window has a least width; a frame has none.
    let frame = |(number, (page, width)): (usize, &(&String, u32))| {
        let page = with_measuring(page, "; script-src 'unsafe-inline'");
        let quoted = page.replace('&', "&amp;").replace('\'', "&#39;");
        format!("<iframe name='{number}' width='{width}' height='900' frameborder='0' srcdoc='{quoted}'></iframe>")
    };
    let frames: String = pages.iter().enumerate().map(frame).collect();
    let (document, complaints) = shown(folder, &format!("<!DOCTYPE html><body>{frames}"), scheme);
    assert_eq!(complaints, [""; 0]);
    let result = |number: usize| {
        let found = document.split_once(&format!("<pre class=\"result\" title=\"{number}\">"));
        let (_, result) = found.unwrap_or_else(|| panic!("no result of {number}"));
        result.split_once("</pre>").unwrap().0.to_owned()
    };
    (0..pages.len()).map(result).collect()
}

/// The page with the script in it, and with this in its policy.
fn with_measuring(page: &str, policy: &str) -> String {
    let open = page.replace(
        "style-src 'unsafe-inline'",
        &format!("style-src 'unsafe-inline'{policy}"),
    );
    open.replace("</body>", &format!("{MEASURE}</body>"))
}
