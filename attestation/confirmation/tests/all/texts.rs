use confirmation::{ConfirmableText, MAX_TEXT, Place, TextRefused, Unshowable};

fn refused(text: &str) -> TextRefused {
    match ConfirmableText::new(text) {
        Err(refused) => refused,
        Ok(_) => panic!("{text:?} is shown"),
    }
}

#[test]
fn what_people_write_is_shown() {
    for text in [
        "Pay 2 500 € to ACME GmbH (IBAN DE89 3704 0044 0532 0130 00)?",
        "Überweisung an Müller & Söhne – “sofort”",
        "Transfert à l'hôtel Le Cœur, Tromsø: Ærø",
        "Перевести 100 € Ивану Петрову",
        "Оса в саду: оплатить",
        "Πληρωμή 100 €",
        "Two\n\nparagraphs",
    ] {
        assert!(
            ConfirmableText::new(text).is_ok(),
            "{text}: {:?}",
            ConfirmableText::new(text)
        );
    }
}

#[test]
fn hostile_characters_are_refused_and_named_with_their_place() {
    use Unshowable as U;
    for (character, expected) in [
        ('\u{0}', U::NotPrintable),
        ('\t', U::NotPrintable),
        ('\r', U::NotPrintable),
        ('\u{7}', U::NotPrintable),
        ('\u{8}', U::NotPrintable),
        ('\u{1b}', U::NotPrintable),
        ('\u{7f}', U::NotPrintable),
        // C1: a control sequence in one character, for terminals that know it.
        ('\u{9b}', U::NotPrintable),
        ('\u{85}', U::NotPrintable),
        ('\u{2028}', U::NotPrintable),
        // Bidirectional.
        ('\u{202e}', U::NotPrintable),
        ('\u{2066}', U::NotPrintable),
        ('\u{200f}', U::NotPrintable),
        ('\u{61c}', U::NotPrintable),
        // Without width, or blank.
        ('\u{200b}', U::NotPrintable),
        ('\u{200d}', U::NotPrintable),
        ('\u{feff}', U::NotPrintable),
        ('\u{ad}', U::NotPrintable),
        ('\u{a0}', U::NotPrintable),
        ('\u{3164}', U::NotPrintable),
        ('\u{2800}', U::NotPrintable),
        ('\u{e0041}', U::NotPrintable),
        ('\u{fe0f}', U::NotPrintable),
        // Combining, private.
        ('\u{301}', U::NotPrintable),
        ('\u{e000}', U::NotPrintable),
        // Scripts that need shaping, run the other way or are wide.
        ('א', U::Script),
        ('ب', U::Script),
        ('東', U::Script),
        ('ก', U::Script),
        // Signs that look like others, and digits of another value.
        ('‚', U::Sign),
        ('∕', U::Sign),
        ('٣', U::Sign),
        ('😀', U::Sign),
        ('│', U::Sign),
        // Letters for specialists.
        ('ａ', U::Uncommon),
        ('ɑ', U::Uncommon),
        ('ı', U::LooksLike('i')),
    ] {
        let TextRefused::Character {
            character: found,
            place,
            why,
        } = refused(&format!("Pay\nto {character}ACME"))
        else {
            panic!("U+{:04X}", u32::from(character));
        };
        assert_eq!(
            (found, why),
            (character, expected),
            "U+{:04X}",
            u32::from(character)
        );
        assert_eq!((place.line, place.column), (2, 4));
    }
    let said = refused("a\u{202e}b").to_string();
    assert!(said.starts_with("line 1, character 2: U+202E"), "{said}");
}

#[test]
fn words_that_read_as_others_are_refused() {
    for text in [
        // A Cyrillic a in a Latin word, and the other way.
        "Pay to p\u{430}ypal",
        "\u{430}pple",
        "x1\u{430}",
        // A Greek omicron.
        "G\u{3bf}ogle",
    ] {
        assert!(
            matches!(refused(text), TextRefused::MixedScripts { .. }),
            "{text}"
        );
    }
    // A word that is Cyrillic throughout and reads as a Latin one: beside Latin words, and alone.
    for text in [
        "Pay to \u{440}\u{430}\u{443}",
        "\u{441}\u{43e}\u{441}\u{43e} 100",
    ] {
        assert!(
            matches!(refused(text), TextRefused::Lookalike { .. }),
            "{text}"
        );
    }
}

#[test]
fn texts_have_a_length_that_people_read_and_hide_nothing_behind_blanks() {
    for text in ["", " ", "\n\n"] {
        assert!(matches!(refused(text), TextRefused::Empty), "{text:?}");
    }
    assert!(ConfirmableText::new(&"x".repeat(MAX_TEXT)).is_ok());
    assert_eq!(refused(&"x".repeat(MAX_TEXT + 1)), TextRefused::TooLong);
    assert_eq!(refused("a\n\n \n\nb"), TextRefused::BlankLines { line: 4 });
    // Blanks at a line's end may become a line.
    assert_eq!(refused("a \n\n\nb"), TextRefused::BlankLines { line: 3 });
    let blanks = |count| format!("a\nb{}c", " ".repeat(count));
    assert!(ConfirmableText::new(&blanks(32)).is_ok());
    let place = Place {
        line: 2,
        column: 34,
    };
    assert_eq!(refused(&blanks(33)), TextRefused::Blanks { place });
}
