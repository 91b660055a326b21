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
