use confirmation::{ConfirmableText, Rendering, TerminalSize};

fn rendered(text: &str, columns: u16, rows: u16) -> Rendering {
    let text = ConfirmableText::new(text).unwrap();
    Rendering::of(&text, TerminalSize::new(columns, rows).unwrap())
}

#[test]
fn lines_are_wrapped_at_blanks_or_where_the_terminal_ends_and_nothing_is_lost() {
    let text = format!(
        "{} and {}\n\nend",
        "word ".repeat(20).trim(),
        "x".repeat(90)
    );
    let rendering = rendered(&text, 40, 24);
    assert!(
        rendering
            .lines()
            .iter()
            .all(|line| line.chars().count() <= 37)
    );
    let letters = |text: &str| {
        text.chars()
            .filter(|c| !c.is_whitespace())
            .collect::<String>()
    };
    assert_eq!(letters(&rendering.lines().concat()), letters(&text));
    assert_eq!(rendering.lines().last().unwrap(), "end");
    assert_ne!(rendered(&text, 41, 24).lines(), rendering.lines());
}

#[test]
fn no_terminal_shows_more_than_two_blank_lines_one_after_the_other() {
    let blanks = [0, 1, 32].map(|count| " ".repeat(count));
    let mut texts = Vec::new();
    for letters in 1..=80 {
        for begin in &blanks {
            for end in &blanks {
                let line = format!("{begin}{}{end}", "x".repeat(letters));
                for between in ["\n", "\n\n", "\n \n", "\n\n\n"] {
                    texts.push(format!("{line}{between}{line}"));
                }
            }
        }
    }
    let texts: Vec<_> = (texts.iter())
        .filter_map(|text| ConfirmableText::new(text).ok())
        .collect();
    assert!(texts.len() > 1000);
    for columns in [40, 41, 57, 80, 132, 500] {
        let size = TerminalSize::new(columns, 24).unwrap();
        for text in &texts {
            let rendering = Rendering::of(text, size);
            let hides = (rendering.lines().windows(3))
                .any(|lines| lines.iter().all(|line| line.trim().is_empty()));
            assert!(!hides, "{columns} {text:?}");
        }
    }
}

#[test]
fn pages_have_what_fits_and_terminals_that_are_too_small_are_refused() {
    let text = (1..=20)
        .map(|n| n.to_string())
        .collect::<Vec<_>>()
        .join("\n");
    let rendering = rendered(&text, 40, 12);
    let pages: Vec<usize> = rendering.pages().map(<[String]>::len).collect();
    assert_eq!(pages, [5, 5, 5, 5]);
    for (columns, rows) in [(0, 0), (39, 24), (80, 11), (501, 24), (80, 201)] {
        assert!(TerminalSize::new(columns, rows).is_err());
    }
}
