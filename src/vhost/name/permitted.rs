//! P: which characters a host name may have (IDNA2008: RFC 5891, RFC 5892).
//!
//! UTS #46 maps a name to its A-labels and accepts emoji, quotes and symbols as well. Registries and
//! certificate authorities follow IDNA2008, which permits letters, digits and marks.

use icu_properties::CodePointMapData;
use icu_properties::props::{GeneralCategory, Script};

/// The first character of a label (in Unicode, mapped by UTS #46) that may not be there.
pub(super) fn first_forbidden(label: &str) -> Option<char> {
    let characters: Vec<char> = label.chars().collect();
    let permitted = |(nth, character): (usize, &char)| {
        is_permitted(*character) || is_permitted_there(&characters, nth, *character)
    };
    let nth = characters.iter().enumerate();
    nth.filter(|it| !permitted(*it)).map(|(_, it)| *it).next()
}

/// In every place: PVALID (RFC 5892 §3). What is unstable, UTS #46 has mapped or refused before.
pub(super) fn is_permitted(character: char) -> bool {
    match character {
        '-' => true,
        // §2.6
        '\u{df}' | '\u{3c2}' | '\u{6fd}' | '\u{6fe}' | '\u{f0b}' | '\u{3007}' => true,
        '\u{640}' | '\u{7fa}' | '\u{302e}' | '\u{302f}' | '\u{3031}'..='\u{3035}' | '\u{303b}' => {
            false
        }
        '\u{660}'..='\u{669}' | '\u{6f0}'..='\u{6f9}' => false,
        // §2.4
        '\u{20d0}'..='\u{20ff}' | '\u{1d100}'..='\u{1d24f}' => false,
        // §2.9
        '\u{1100}'..='\u{11ff}'
        | '\u{a960}'..='\u{a97c}'
        | '\u{d7b0}'..='\u{d7c6}'
        | '\u{d7cb}'..='\u{d7fb}' => false,
        // §2.1
        _ => matches!(
            CodePointMapData::<GeneralCategory>::new().get(character),
            GeneralCategory::LowercaseLetter
                | GeneralCategory::UppercaseLetter
                | GeneralCategory::OtherLetter
                | GeneralCategory::DecimalNumber
                | GeneralCategory::ModifierLetter
                | GeneralCategory::NonspacingMark
                | GeneralCategory::SpacingMark
        ),
    }
}

/// CONTEXTO (RFC 5892 appendix A.3 to A.9). UTS #46 judges the joiners of A.1 and A.2.
fn is_permitted_there(label: &[char], nth: usize, character: char) -> bool {
    let before = nth.checked_sub(1).and_then(|nth| label.get(nth));
    let after = label.get(nth + 1);
    let has = |range: std::ops::RangeInclusive<char>| label.iter().any(|it| range.contains(it));
    match character {
        '\u{200c}' | '\u{200d}' => true,
        '\u{b7}' => (before, after) == (Some(&'l'), Some(&'l')),
        '\u{375}' => after.is_some_and(|it| script(*it) == Script::Greek),
        '\u{5f3}' | '\u{5f4}' => before.is_some_and(|it| script(*it) == Script::Hebrew),
        '\u{30fb}' => {
            let scripts = [Script::Hiragana, Script::Katakana, Script::Han];
            label.iter().any(|it| scripts.contains(&script(*it)))
        }
        '\u{660}'..='\u{669}' => !has('\u{6f0}'..='\u{6f9}'),
        '\u{6f0}'..='\u{6f9}' => !has('\u{660}'..='\u{669}'),
        _ => false,
    }
}

fn script(character: char) -> Script {
    CodePointMapData::<Script>::new().get(character)
}
