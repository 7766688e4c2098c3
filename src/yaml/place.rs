//! P: the parser's locations → positions in the text.

use serde_saphyr::Location;
use serde_saphyr::granit_parser::Span;

use crate::diagnostic::Position;

/// The parser's location in our terms; `None` where it has none.
pub(super) fn locate(text: &str, location: &Location) -> Option<Position> {
    if *location == Location::UNKNOWN {
        return None;
    }
    let span = location.span();
    let characters = usize::try_from(span.offset()).ok()?;
    let offset = match span.byte_offset() {
        Some(offset) => usize::try_from(offset).ok()?,
        None => text
            .char_indices()
            .nth(characters)
            .map_or(text.len(), |(at, _)| at),
    };
    let length = span
        .byte_len()
        .and_then(|length| usize::try_from(length).ok());
    Some(Position {
        line: usize::try_from(location.line()).ok()?,
        column: usize::try_from(location.column()).ok()?,
        offset,
        length: trimmed_length(text, offset, length.unwrap_or(0)),
    })
}

/// The scanner's span of a plain scalar may include what follows it on the line.
fn trimmed_length(text: &str, offset: usize, length: usize) -> usize {
    let end = offset.saturating_add(length).min(text.len());
    text.get(offset..end)
        .map_or(0, |span| span.trim_end().len())
}

pub(super) fn position(text: &str, span: &Span) -> Position {
    let offset = span.start.byte_offset().unwrap_or_default();
    let end = span.end.byte_offset().unwrap_or(offset);
    position_of(
        text,
        offset,
        trimmed_length(text, offset, end.saturating_sub(offset)),
    )
}

pub(super) fn tag_position(text: &str, node: &Span) -> Position {
    match node.tag_start().and_then(|start| start.byte_offset()) {
        Some(offset) => position_of(text, offset, word_length(text, offset)),
        None => position(text, node),
    }
}

pub(super) fn word_length(text: &str, offset: usize) -> usize {
    let rest = text.get(offset..).unwrap_or_default();
    rest.find(|c: char| c.is_whitespace() || ",]}".contains(c))
        .unwrap_or(rest.len())
}

pub(super) fn position_of(text: &str, offset: usize, length: usize) -> Position {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Position {
        line: before.matches('\n').count() + 1,
        column: before.get(line_start..).unwrap_or("").chars().count() + 1,
        offset,
        length,
    }
}
