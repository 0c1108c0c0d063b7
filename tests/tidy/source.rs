//! A Rust file as the house rules see it: words and signs with their lines, without comments and literals, and the
//! paths that it names. Enough for rules about names; what takes types to decide is left to clippy.

/// One Rust file of the repository.
pub(crate) struct RustFile {
    /// From the root of the repository.
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) code: Code,
}

/// The code of a file, without comments and literals.
pub(crate) struct Code {
    tokens: Vec<Token>,
    /// Every path that is named, those of `use` groups one by one.
    pub(crate) paths: Vec<Path>,
    /// First and last line of what exists under test only.
    tests: Vec<(usize, usize)>,
}

/// `a::b::c`, the last segment `*` or `self` as in `use`.
pub(crate) struct Path {
    pub(crate) segments: Vec<String>,
    pub(crate) line: usize,
    /// How many `mod name { … }` of this file stand around it.
    pub(crate) inline_depth: usize,
}

struct Token {
    text: String,
    line: usize,
}

impl RustFile {
    pub(crate) fn new(path: String, text: String) -> Self {
        let mut code = Code::new(&text);
        let file = path.rsplit('/').next().unwrap_or_default();
        if file == "tests.rs" {
            code.tests.push((1, usize::MAX));
        }
        Self { path, text, code }
    }

    /// The module path of a file in `src/`, `lib` and `main` being modules of that name.
    pub(crate) fn module(&self) -> Option<Vec<String>> {
        let inside = self.path.strip_prefix("src/")?.strip_suffix(".rs")?;
        Some(
            inside
                .strip_suffix("/mod")
                .unwrap_or(inside)
                .split('/')
                .map(str::to_owned)
                .collect(),
        )
    }

    /// Whether the file ends up in what users run.
    pub(crate) fn is_shipped(&self) -> bool {
        ["src/", "hsm/src/", "perf/src/"]
            .iter()
            .any(|folder| self.path.starts_with(folder))
    }

    /// The comments beside and above the statement that holds `line`.
    pub(crate) fn comment_above(&self, line: usize) -> String {
        let lines: Vec<&str> = self.text.lines().take(line).map(str::trim).collect();
        let Some((own, above)) = lines.split_last() else {
            return String::new();
        };
        let mut comment = own
            .split_once("//")
            .map(|(_, comment)| comment.to_owned())
            .unwrap_or_default();
        let mut seen = false;
        for line in above.iter().rev() {
            if line.starts_with("//") {
                seen = true;
                comment.push_str(line);
            } else if !line.starts_with("#[") && (seen || line.is_empty() || line.ends_with([';', '{', '}'])) {
                break;
            }
        }
        comment
    }
}

impl Code {
    fn new(text: &str) -> Self {
        let tokens = tokens(text);
        let (paths, tests) = (paths(&tokens), test_lines(&tokens));
        Self { tokens, paths, tests }
    }

    /// The lines in which the token sequence begins.
    pub(crate) fn lines_of(&self, sequence: &[&str]) -> impl Iterator<Item = usize> {
        let same = move |window: &&[Token]| window.iter().zip(sequence).all(|(token, text)| token.text == *text);
        self.tokens
            .windows(sequence.len())
            .filter(same)
            .map(|window| window[0].line)
    }

    /// Whether a line exists under test only.
    pub(crate) fn is_test(&self, line: usize) -> bool {
        self.tests.iter().any(|&(first, last)| (first..=last).contains(&line))
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Words, `::`, and every other sign by itself. A literal becomes the token `""`; a comment becomes nothing.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let mut tokens = Vec::new();
    let (mut index, mut line) = (0, 1);
    while index < chars.len() {
        let start = index;
        let token = match (at(index), at(index + 1)) {
            ('/', '/') => {
                while index < chars.len() && at(index) != '\n' {
                    index += 1;
                }
                None
            }
            ('/', '*') => {
                index = block_comment_end(&chars, index);
                None
            }
            ('"', _) => {
                index = string_end(&chars, index);
                Some("\"\"".to_owned())
            }
            // A quote opens a character, unless a name follows that no quote closes: then it is a lifetime.
            ('\'', next) if next == '\\' || at(index + 2) == '\'' => {
                index += if next == '\\' { 3 } else { 2 };
                while index < chars.len() && at(index) != '\'' {
                    index += 1;
                }
                index += 1;
                Some("\"\"".to_owned())
            }
            (':', ':') => {
                index += 2;
                Some("::".to_owned())
            }
            (c, _) if is_word(c) => {
                while is_word(at(index)) {
                    index += 1;
                }
                let word: String = chars[start..index].iter().collect();
                let hashes = chars[index..].iter().take_while(|c| **c == '#').count();
                let raw = matches!(word.as_str(), "r" | "br" | "cr");
                if raw && at(index + hashes) == '"' {
                    index = raw_string_end(&chars, index + hashes + 1, hashes);
                    Some("\"\"".to_owned())
                } else if word == "r" && hashes == 1 {
                    // `r#type`: the name follows as a word of its own.
                    index += 1;
                    None
                } else if matches!(word.as_str(), "b" | "c") && matches!(at(index), '"' | '\'') {
                    None
                } else {
                    Some(word)
                }
            }
            (c, _) => {
                index += 1;
                (!c.is_whitespace()).then(|| c.to_string())
            }
        };
        tokens.extend(token.map(|text| Token { text, line }));
        line += chars[start..index.min(chars.len())]
            .iter()
            .filter(|c| **c == '\n')
            .count();
    }
    tokens
}

fn block_comment_end(chars: &[char], mut index: usize) -> usize {
    let mut depth = 0;
    while index < chars.len() {
        match (chars[index], chars.get(index + 1)) {
            ('/', Some('*')) => (depth, index) = (depth + 1, index + 2),
            ('*', Some('/')) => (depth, index) = (depth - 1, index + 2),
            _ => index += 1,
        }
        if depth == 0 {
            break;
        }
    }
    index
}

fn string_end(chars: &[char], quote: usize) -> usize {
    let mut index = quote + 1;
    while index < chars.len() && chars[index] != '"' {
        index += if chars[index] == '\\' { 2 } else { 1 };
    }
    index + 1
}

fn raw_string_end(chars: &[char], mut index: usize, hashes: usize) -> usize {
    let closes = |index: usize| {
        chars[index] == '"' && chars[index + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
    };
    while index < chars.len() && !closes(index) {
        index += 1;
    }
    index + 1 + hashes
}

fn paths(tokens: &[Token]) -> Vec<Path> {
    let mut paths = Vec::new();
    let (mut index, mut depth) = (0, 0);
    let mut modules = Vec::new();
    let text = |index: usize| tokens.get(index).map_or("", |token: &Token| token.text.as_str());
    while index < tokens.len() {
        match text(index) {
            "mod" if text(index + 2) == "{" => {
                depth += 1;
                modules.push(depth);
                index += 3;
            }
            "{" => (depth, index) = (depth + 1, index + 1),
            "}" => {
                if modules.last() == Some(&depth) {
                    modules.pop();
                }
                (depth, index) = (depth - 1, index + 1);
            }
            // Not the `use<'a>` that names what a type captures.
            "use" if text(index + 1) != "<" => index = use_tree(tokens, index + 1, &[], modules.len(), &mut paths),
            word if word.starts_with(is_word) => {
                let is_member = index > 0 && text(index - 1) == ".";
                let line = tokens[index].line;
                let mut segments = vec![word.to_owned()];
                index += 1;
                while text(index) == "::" && text(index + 1).starts_with(is_word) {
                    segments.push(text(index + 1).to_owned());
                    index += 2;
                }
                if !is_member {
                    paths.push(Path {
                        segments,
                        line,
                        inline_depth: modules.len(),
                    });
                }
            }
            _ => index += 1,
        }
    }
    paths
}

/// Reads one tree of a `use`, adds a path for each leaf, and returns where it ends.
fn use_tree(
    tokens: &[Token],
    mut index: usize,
    prefix: &[String],
    inline_depth: usize,
    paths: &mut Vec<Path>,
) -> usize {
    let mut segments = prefix.to_vec();
    while let Some(Token { text, line }) = tokens.get(index) {
        match text.as_str() {
            "::" => index += 1,
            "{" => {
                index += 1;
                while tokens.get(index).is_some_and(|token| token.text != "}") {
                    index = use_tree(tokens, index, &segments, inline_depth, paths);
                    index += usize::from(tokens.get(index).is_some_and(|token| token.text == ","));
                }
                return index + 1;
            }
            word if word == "*" || word.starts_with(is_word) => {
                segments.push(word.to_owned());
                index += 1;
                if tokens.get(index).is_none_or(|token| token.text != "::") {
                    if segments == ["crate"] {
                        segments.push("self".to_owned());
                    }
                    paths.push(Path {
                        segments,
                        line: *line,
                        inline_depth,
                    });
                    let renamed = tokens.get(index).is_some_and(|token| token.text == "as");
                    return if renamed { index + 2 } else { index };
                }
            }
            // `;`, or something that is no `use` after all.
            _ => return index + 1,
        }
    }
    index
}

/// What follows `#[test]`, `#[cfg(test)]` and the like, up to the end of the item.
fn test_lines(tokens: &[Token]) -> Vec<(usize, usize)> {
    let mut regions = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        let inner = tokens.get(index + 1).is_some_and(|token| token.text == "!");
        let bracket = index + 1 + usize::from(inner);
        if tokens[index].text != "#" || tokens.get(bracket).is_none_or(|token| token.text != "[") {
            index += 1;
            continue;
        }
        let end = group_end(tokens, bracket);
        let says = |word: &str| tokens[bracket..end].iter().any(|token| token.text == word);
        if says("test") && !says("not") && !says("any") {
            let mut last = end;
            while !inner && tokens.get(last).is_some_and(|token| token.text == "#") {
                last = group_end(tokens, last + 1);
            }
            let last = if inner {
                usize::MAX
            } else {
                tokens[item_end(tokens, last).min(tokens.len()) - 1].line
            };
            regions.push((tokens[index].line, last));
        }
        index = end;
    }
    regions
}

/// Behind the item that begins at `index`: its braces or its semicolon.
fn item_end(tokens: &[Token], mut index: usize) -> usize {
    while let Some(token) = tokens.get(index) {
        match token.text.as_str() {
            ";" => return index + 1,
            "{" => return group_end(tokens, index),
            "(" | "[" => index = group_end(tokens, index),
            _ => index += 1,
        }
    }
    index
}

/// Behind the bracket that closes the one at `index`.
fn group_end(tokens: &[Token], mut index: usize) -> usize {
    let mut depth = 0;
    while let Some(token) = tokens.get(index) {
        index += 1;
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    index
}

#[test]
fn comments_and_literals_hide_their_words() {
    let text = "a // b\n/* c /* d */ e */ f \"g \\\" h\" r#\"i \" j\"# 'k' '\\'' b'l' b\"m\" &'n r#o\np";
    let seen: Vec<_> = tokens(text).into_iter().map(|token| (token.text, token.line)).collect();
    let words: Vec<_> = seen
        .iter()
        .filter(|(text, _)| text != "\"\"")
        .map(|(text, line)| (text.as_str(), *line))
        .collect();
    assert_eq!(
        words,
        [("a", 1), ("f", 2), ("&", 2), ("'", 2), ("n", 2), ("o", 2), ("p", 3)]
    );
    assert_eq!(
        seen.len() - words.len(),
        6,
        "literals leave a mark, so that what surrounds them is not joined"
    );
}

#[test]
fn every_leaf_of_a_use_is_a_path() {
    let text = "use a::{self, b::{c, d as e}, f::*};\nuse ::g;\nfn h<T>() -> impl Sized + use<T> { i::j::<k::L>(m.n) }";
    let seen: Vec<String> = Code::new(text)
        .paths
        .iter()
        .map(|path| path.segments.join("::"))
        .collect();
    assert_eq!(seen[..5], ["a::self", "a::b::c", "a::b::d", "a::f::*", "g"]);
    assert!(
        ["i::j", "k::L", "m"]
            .iter()
            .all(|path| seen.iter().any(|seen| seen == path)),
        "{seen:?}"
    );
    assert!(!seen.iter().any(|seen| seen == "n"), "a field is no path: {seen:?}");
}

#[test]
fn test_code_is_told_from_the_rest() {
    let text = "fn a() {}\n#[test]\n#[should_panic]\nfn b(x: [u8; 3]) {\n}\n#[cfg(not(test))]\nfn c() {}\n#[cfg(test)]\nmod tests {\n    fn d() {}\n}\n#[cfg(test)]\nconst E: [u8; 1] =\n    [1];\nfn g() {}\n";
    let code = Code::new(text);
    let tests: Vec<usize> = (1..=15).filter(|line| code.is_test(*line)).collect();
    assert_eq!(tests, [2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14]);
}
