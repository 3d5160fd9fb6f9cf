//! Lines that tokenizers disagree about, the same in every run.

/// Parts of lines, by what is hard about them.
const PARTS: &[&[&str]] = &[
    &[
        "the", "list", " of", "Files", " and", " Words", "NASA's", "don't", "I'M", "we'll've", "O'Neill", "straße",
        "naïve",
    ],
    &["camelCase", "HTTPServer2", "snake_case_x", "__init__", "ǅ", "ʰa", "ªº", "ǅungla", "İstanbul", "ſ's", "'ſ"],
    &["0", "12", " 345", "6789", "1234567890", "3.14e-10", "½", "٣٤٥", "Ⅷ", "１２３", "१२", "²", "1,000,000"],
    &[
        " ",
        "  ",
        "   ",
        "\t",
        "\n",
        "\r\n",
        "\n\n\n",
        " \n ",
        "\u{a0}",
        "\u{3000}",
        "\u{2003}x",
        "\u{2028}",
        "\u{85}",
        "          ",
    ],
    &[
        "!", "?!", "...", "—", "“q”", "¿", "(x)", "[[", "]]", "{}", "//", "/\n/", "::", "->", "\\n", "#", "$", "€5",
        "~", "`", "|",
    ],
    &["日本語", "の", "テキスト", "。", "中文字符", "，", "한국어", "각", "豈", "𠮷", "ㄅㄆ", "カﾞ", "々"],
    &[
        "e\u{301}",
        "a\u{308}\u{323}",
        "\u{301}",
        "n\u{303}o",
        "\u{1100}\u{1161}\u{11a8}",
        "Å",
        "\u{212b}",
        "ﬁ",
        "x\u{20d0}y",
        "\u{958}",
    ],
    &["العربية", "שלום", "שָׁלוֹם", "فارسی\u{200c}ها", "\u{202e}rtl\u{202c}", "؟", "مُحَمَّد", "\u{200f}", "اردو۔"],
    &["हिन्दी", "क्षत्रिय", "বাংলা", "தமிழ்", "ไทยภาษา", "ქართული", "Ελληνικά", "Русский", "Йод", "Ѐ", "አማርኛ", "မြန်မာ"],
    &["🙂", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "👍🏽", "☃", "©", "1️⃣", "🫠", "✈️", "❤"],
    &[
        "fn main() {",
        "    let x = &y[1..];",
        "<tag attr='v'>",
        "a/b\\c",
        "x+=1;",
        "def f(x):",
        "\treturn x**2",
        "λx.x",
        "∑∫≠",
    ],
    &[
        "\u{0}",
        "\u{7}",
        "\u{1b}[0m",
        "\u{200b}",
        "\u{feff}",
        "\u{ad}",
        "\u{fffd}",
        "\u{e000}",
        "\u{2060}",
        "𝔘𝔫",
        "\u{378}",
    ],
];

/// So many lines; every hundredth has thousands of characters, and one in eight keeps to one kind of parts.
pub(crate) fn lines(n: usize) -> Vec<String> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    (0..n)
        .map(|i| {
            let own = next(PARTS.len());
            let (parts, spaced) = (if i % 100 == 99 { 1500 } else { 1 + next(24) }, next(2) == 0);
            let mut line = String::new();
            for _ in 0..parts {
                let kind = if i % 8 == 0 { PARTS[own] } else { PARTS[next(PARTS.len())] };
                line.push_str(kind[next(kind.len())]);
                if spaced && next(2) == 0 {
                    line.push(' ');
                }
            }
            line
        })
        .collect()
}

/// Lines without a word's end, which cost a careless tokenizer the square of their length.
pub(crate) fn long_lines() -> Vec<String> {
    let n = 60_000;
    ["a", "ab", "A", " ", "\n", " \n", "é", "日", "\u{301}", "!", "7", "ª", "🙂"]
        .iter()
        .map(|s| s.repeat(n / s.len()))
        .collect()
}

/// Every character of the first two planes, a few at a time and each between letters and spaces. Blocks of scripts
/// that compose and are younger than the library's tables are left out.
pub(crate) fn characters() -> Vec<String> {
    let young = |c: &char| matches!(u32::from(*c), 0x1_1380..0x1_1400 | 0x1_6100..0x1_6140 | 0x1_6d40..0x1_6d80);
    let all: Vec<char> = (0..0x2_0000).filter_map(char::from_u32).filter(|c| !young(c)).collect();
    all.chunks(32).map(|part| part.iter().flat_map(|c| ['x', *c, ' ', *c, *c, 'Y', *c, '1']).collect()).collect()
}
