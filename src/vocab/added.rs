//! Added tokens: what a fine-tune adds to a vocabulary, and padding for unused rows of the embedding.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::draft::{AddedToken, Draft, Piece};
use super::sentencepiece_bpe::padding_text;
use super::special::token_text;
use super::{Error, Flags, MAX_PIECES, PieceType, TokenizerFiles};

/// Adds the added tokens to the vocabulary, and a token for every other row of the embedding.
pub(super) fn add(
    draft: &mut Draft,
    files: &TokenizerFiles<'_>,
    embedding_rows: u64,
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    if embedding_rows > MAX_PIECES as u64 {
        return Err(Error::TooManyPieces { found: embedding_rows });
    }
    let mut places = index(&draft.pieces)?;
    let n_file = draft.pieces.len() as u64;
    for id in n_file..embedding_rows {
        push_padding(draft, &mut places, id);
    }
    let mut rowless = Vec::new();
    for (id, token) in collect(draft, files)? {
        match draft.pieces.get(id as usize) {
            Some(_) => {
                let (text, flags, normalized) = (token.text.clone(), token.flags, token.normalized);
                place(draft, &mut places, id as usize, token, warnings)?;
                flag(draft, id as u32, &text, flags, normalized);
            }
            None => rowless.push(format!("'{}' ({id})", token.text)),
        }
    }
    if !rowless.is_empty() {
        warnings.push(format!(
            "left out {} added token{} beyond the {embedding_rows} rows of the embedding: {}",
            rowless.len(),
            if rowless.len() == 1 { "" } else { "s" },
            rowless.iter().take(8).cloned().collect::<Vec<_>>().join(", ")
        ));
    }
    cut(draft, embedding_rows, warnings)?;
    warn_of_flags(draft, warnings);
    Ok(())
}

/// Notes the flags of a token that has been placed.
fn flag(draft: &mut Draft, id: u32, text: &str, flags: Flags, normalized: bool) {
    let piece = &draft.pieces[id as usize];
    if piece.text != text || !matches!(piece.ty, PieceType::Control | PieceType::UserDefined) {
        return;
    }
    if flags.any() {
        draft.flags.push((id, flags));
    }
    // It makes a difference where normalization adds a space in front, which the token then needs, and where it replaces
    // the spaces that a flag is about. Control pieces are found all the same: a template that spells one means it.
    let differs = draft.prefix_normalizes || (draft.escape_normalizes && (flags.lstrip || flags.rstrip));
    if normalized && differs && piece.ty == PieceType::UserDefined {
        draft.normalized.push(id);
    }
}

/// Warns of flags, which no key of GGUF has a place for.
fn warn_of_flags(draft: &mut Draft, warnings: &mut Vec<String>) {
    let rows = draft.pieces.len();
    draft.flags.retain(|(id, _)| (*id as usize) < rows);
    draft.normalized.retain(|id| (*id as usize) < rows);
    type Has = fn(&Flags) -> bool;
    let kinds: [(&str, Has); 3] = [
        ("lstrip", |flags| flags.lstrip),
        ("rstrip", |flags| flags.rstrip),
        ("single_word", |flags| flags.single_word),
    ];
    let mut said = Vec::new();
    for (what, has) in kinds {
        let ids: Vec<u32> = draft.flags.iter().filter(|(_, flags)| has(flags)).map(|(id, _)| *id).collect();
        said.extend(some(draft, &ids).map(|names| format!("{what} of {names}")));
    }
    said.extend(some(draft, &draft.normalized).map(|names| format!("normalized of {names}")));
    if !said.is_empty() {
        warnings.push(format!(
            "GGUF has no place for the flags of added tokens, which are stored in keys of nibble's own, so that other \
             programs may get different tokens: {}",
            said.join("; ")
        ));
    }
}

/// The texts of these pieces, at most four of them; `None` if there are none.
fn some(draft: &Draft, ids: &[u32]) -> Option<String> {
    let mut texts: Vec<String> =
        ids.iter().take(4).map(|&id| format!("'{}'", draft.pieces[id as usize].text)).collect();
    if let Some(more) = ids.len().checked_sub(texts.len()).filter(|more| *more > 0) {
        texts.push(format!("{more} more"));
    }
    (!texts.is_empty()).then(|| texts.join(", "))
}

/// Maps each text to its id. Refuses texts that occur twice.
fn index(pieces: &[Piece]) -> Result<HashMap<String, usize>, Error> {
    let mut places = HashMap::with_capacity(pieces.len());
    for (id, piece) in pieces.iter().enumerate() {
        if let Some(first) = places.insert(piece.text.clone(), id) {
            return Err(Error::Duplicate { piece: piece.text.clone(), first: first as u32, second: id as u32 });
        }
    }
    Ok(places)
}

fn push_padding(draft: &mut Draft, places: &mut HashMap<String, usize>, id: u64) {
    let mut text = padding_text(id);
    while places.contains_key(&text) {
        text.push('_');
    }
    places.insert(text.clone(), draft.pieces.len());
    draft.pieces.push(Piece { text, score: 0.0, ty: PieceType::Unused });
}

/// Collects all added tokens by id. Later files override earlier ones: `tokenizer.json`, `added_tokens.json`,
/// `tokenizer_config.json`.
fn collect(draft: &Draft, files: &TokenizerFiles<'_>) -> Result<BTreeMap<u64, AddedToken>, Error> {
    let special = special_texts(files);
    let mut tokens: BTreeMap<u64, AddedToken> = draft.added.iter().cloned().collect();
    for (text, id) in files.added_tokens.into_iter().flatten() {
        let id = id.as_u64().ok_or_else(|| bad_value("added_tokens.json", format!("'{text}'"), id, "an id"))?;
        // This file has no flags. Where another one has them for the same token, they stay.
        let known = tokens.get(&id).filter(|token| token.text == *text).cloned();
        let special = special.contains(text.as_str()) || tokens.get(&id).is_some_and(|token| token.special);
        let (flags, normalized) = known.map_or((Flags::default(), !special), |token| (token.flags, token.normalized));
        tokens.insert(id, AddedToken { text: text.clone(), special, flags, normalized });
    }
    let decoder = files.tokenizer_config.and_then(|config| config.get("added_tokens_decoder"));
    for (key, value) in decoder.and_then(Value::as_object).into_iter().flatten() {
        const FILE: &str = "tokenizer_config.json";
        let place = format!("added_tokens_decoder.{key}");
        let id = key.parse().map_err(|_| bad_value(FILE, place.clone(), &Value::from(key.as_str()), "an id"))?;
        let text = token_text(value).ok_or_else(|| bad_value(FILE, place, value, "a token"))?;
        let flag = |name: &str| value[name].as_bool();
        let is = |name: &str| flag(name).unwrap_or(false);
        let special = flag("special").unwrap_or(special.contains(text));
        let flags = Flags { lstrip: is("lstrip"), rstrip: is("rstrip"), single_word: is("single_word") };
        let normalized = flag("normalized").unwrap_or(!special);
        tokens.insert(id, AddedToken { text: text.to_string(), special, flags, normalized });
    }
    tokens.retain(|_, token| !token.text.is_empty());
    Ok(tokens)
}

fn bad_value(file: &'static str, place: String, found: &Value, wanted: &'static str) -> Error {
    let found = crate::base::display::shorten(&found.to_string(), 60);
    Error::BadValue { file, place, found, wanted }
}

/// Collects the texts that any file calls special.
fn special_texts<'a>(files: &TokenizerFiles<'a>) -> HashSet<&'a str> {
    let mut texts = HashSet::new();
    for object in [files.tokenizer_config, files.special_tokens_map].into_iter().flatten() {
        for (key, value) in object {
            if key.ends_with("_token") {
                texts.extend(token_text(value));
            } else if key == "additional_special_tokens" || key == "extra_special_tokens" {
                texts.extend(value.as_array().into_iter().flatten().filter_map(token_text));
            }
        }
    }
    texts
}

/// Adds one token to the vocabulary, by the rules in the documentation of [`super`].
fn place(
    draft: &mut Draft,
    places: &mut HashMap<String, usize>,
    id: usize,
    token: AddedToken,
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    let typed = draft.typed;
    let new_type = if token.special { PieceType::Control } else { PieceType::UserDefined };
    let piece = &mut draft.pieces[id];
    if piece.text == token.text {
        let was = piece.ty;
        piece.ty = match was {
            // Pieces for unknown text and for bytes keep their purpose.
            PieceType::Unknown | PieceType::Byte => piece.ty,
            PieceType::Unused => new_type,
            PieceType::Normal if !typed || is_marker(&token.text) => new_type,
            other => other,
        };
        if piece.ty == PieceType::UserDefined && (!typed || was != piece.ty) {
            draft.prefix_after.push(id as u32);
        }
        return Ok(());
    }
    if matches!(piece.ty, PieceType::Byte | PieceType::Unknown) {
        warnings.push(format!(
            "left out the added token '{}': its id {id} belongs to '{}', which the tokenizer needs",
            token.text, piece.text
        ));
        return Ok(());
    }
    // Rows beyond the file's own pieces have no name yet. Renaming a piece of the file is worth a warning.
    if piece.ty != PieceType::Unused {
        warnings
            .push(format!("token {id} is '{}' in the tokenizer, now '{}' as an added token", piece.text, token.text));
    }
    places.remove(&piece.text);
    piece.text.clone_from(&token.text);
    piece.ty = new_type;
    piece.score = 0.0;
    if new_type == PieceType::UserDefined {
        draft.prefix_after.push(id as u32);
    }
    if let Some(old) = places.insert(token.text.clone(), id) {
        warnings.push(format!("'{}' is token {id} as an added token; its old id {old} is no longer used", token.text));
        let mut text = padding_text(old as u64);
        while places.contains_key(&text) {
            text.push('_');
        }
        places.insert(text.clone(), old);
        draft.pieces[old] = Piece { text, score: 0.0, ty: PieceType::Unused };
    }
    Ok(())
}

/// Returns whether a text looks like a marker, not like plain text.
fn is_marker(text: &str) -> bool {
    let text = text.strip_prefix('▁').unwrap_or(text);
    let inside = |open, close| text.strip_prefix(open).and_then(|text| text.strip_suffix(close));
    inside('<', '>').or_else(|| inside('[', ']')).is_some_and(|name: &str| !name.is_empty())
}

/// Removes pieces beyond the rows of the embedding. Pieces of text there are an error: without them, other text would
/// be split differently.
fn cut(draft: &mut Draft, rows: u64, warnings: &mut Vec<String>) -> Result<(), Error> {
    let lost = draft.pieces.get(rows as usize..).unwrap_or_default();
    let is_text = |piece: &Piece| matches!(piece.ty, PieceType::Normal | PieceType::Byte | PieceType::Unknown);
    if let Some((n, piece)) = lost.iter().enumerate().find(|(_, piece)| is_text(piece)) {
        return Err(Error::TooFewRows {
            rows,
            pieces: draft.pieces.len() as u64,
            id: rows + n as u64,
            piece: piece.text.clone(),
        });
    }
    if !lost.is_empty() {
        warnings.push(format!(
            "left out the last {} of {} tokens, beyond the {rows} rows of the embedding: {}",
            lost.len(),
            draft.pieces.len(),
            lost.iter().take(8).map(|piece| format!("'{}'", piece.text)).collect::<Vec<_>>().join(", ")
        ));
        draft.pieces.truncate(rows as usize);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Object;
    use super::super::sentencepiece::tests::model;
    use super::*;

    use PieceType::{Byte, Control, Normal, Unknown, Unused, UserDefined};

    const BASE: [(&str, f32, PieceType); 7] = [
        ("<unk>", 0.0, Unknown),
        ("<s>", 0.0, Control),
        ("<0x0A>", 0.0, Byte),
        ("<|im_end|>", 0.0, UserDefined),
        ("<|spare|>", 0.0, Unused),
        ("<marker>", -1.0, Normal),
        ("!", -2.0, Normal),
    ];

    /// The pieces after adding, the warnings, and all the rest.
    type Added = (Vec<(String, PieceType)>, Vec<String>, Draft);

    fn added(decoder: Value, added_tokens: Value, rows: u64) -> Result<Added, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.model");
        std::fs::write(&path, model(&BASE)).unwrap();
        let config: Object =
            serde_json::from_value(json!({"added_tokens_decoder": decoder, "pad_token": "<pad>"})).unwrap();
        let added_tokens: Object = serde_json::from_value(added_tokens).unwrap();
        let files = TokenizerFiles {
            model: Some(path),
            tokenizer_config: Some(&config),
            added_tokens: Some(&added_tokens),
            ..TokenizerFiles::default()
        };
        let mut warnings = Vec::new();
        let mut draft = super::super::draft::read(&files, &mut warnings).unwrap();
        add(&mut draft, &files, rows, &mut warnings)?;
        Ok((draft.pieces.iter().map(|piece| (piece.text.clone(), piece.ty)).collect(), warnings, draft))
    }

    #[test]
    fn pieces_listed_under_their_own_text_keep_their_type() {
        let special = |text: &str| json!({"content": text, "special": true});
        let decoder = json!({"0": special("<unk>"), "1": special("<s>"), "2": special("<0x0A>"),
            "3": special("<|im_end|>"), "4": special("<|spare|>"), "5": special("<marker>"), "6": special("!")});
        let (pieces, warnings, _) = added(decoder, json!({}), 7).unwrap();
        let types: Vec<PieceType> = pieces.iter().map(|piece| piece.1).collect();
        assert_eq!(types, [Unknown, Control, Byte, UserDefined, Control, Control, Normal]);
        assert!(warnings.is_empty(), "{warnings:?}");
    }

    #[test]
    fn added_tokens_rename_pieces_and_take_free_rows() {
        let decoder =
            json!({"4": {"content": "<|im_start|>", "special": true}, "6": {"content": "?", "special": false}});
        let (pieces, warnings, draft) = added(decoder, json!({"<pad>": 8, "<x>": 9}), 10).unwrap();
        let named = |text: &str, ty| (text.to_string(), ty);
        assert_eq!(pieces[4], named("<|im_start|>", Control));
        assert_eq!(pieces[6..8], [named("?", UserDefined), named("[PAD7]", Unused)]);
        assert_eq!(pieces[8..], [named("<pad>", Control), named("<x>", UserDefined)]);
        assert_eq!(draft.prefix_after, [6, 9]);
        assert!(warnings.len() == 1 && warnings[0].contains("now '?'"), "{warnings:?}");
    }

    #[test]
    fn a_text_has_one_id_and_the_added_one_wins() {
        let (pieces, warnings, _) = added(json!({}), json!({"<|im_end|>": 7}), 8).unwrap();
        assert_eq!(pieces[3], ("[PAD3]".to_string(), Unused));
        assert_eq!(pieces[7], ("<|im_end|>".to_string(), UserDefined));
        assert!(warnings[0].contains("old id 3"), "{warnings:?}");
    }

    #[test]
    fn tokens_without_a_row_are_left_out_with_a_warning() {
        let (pieces, warnings, _) = added(json!({}), json!({"<|im_end|>": 64000, "<y>": u64::MAX}), 7).unwrap();
        assert_eq!((pieces.len(), pieces[3].1), (7, UserDefined));
        assert!(warnings[0].contains("2 added tokens") && warnings[0].contains("'<|im_end|>' (64000)"), "{warnings:?}");
    }

    #[test]
    fn refuses_an_embedding_without_a_row_for_text() {
        let error = added(json!({}), json!({}), 6).unwrap_err().to_string();
        assert!(error.contains("6 rows") && error.contains("7 pieces") && error.contains("'!'"), "{error}");
        assert!(added(json!({}), json!({}), u64::MAX).unwrap_err().to_string().contains("at most"));
        assert!(added(json!({}), json!({}), 0).is_err());
    }

    #[test]
    fn control_pieces_without_a_row_are_left_out() {
        let decoder = json!({"5": {"content": "<a>", "special": true}, "6": {"content": "<b>", "special": true}});
        let (pieces, warnings, _) = added(decoder, json!({}), 5).unwrap();
        assert_eq!(pieces.len(), 5);
        assert!(warnings.last().unwrap().contains("'<a>', '<b>'"), "{warnings:?}");
    }

    #[test]
    fn bytes_and_the_unknown_piece_cannot_be_renamed() {
        let (pieces, warnings, _) = added(json!({}), json!({"<x>": 2, "<y>": 0}), 7).unwrap();
        assert_eq!((pieces[0].0.as_str(), pieces[2].0.as_str(), warnings.len()), ("<unk>", "<0x0A>", 2));
    }

    #[test]
    fn refuses_lists_that_make_no_sense() {
        assert!(added(json!({}), json!({"<x>": "eight"}), 7).unwrap_err().to_string().contains("'<x>' is \"eight\""));
        assert!(added(json!({"x": {"content": "a"}}), json!({}), 7).unwrap_err().to_string().contains("decoder.x"));
        assert!(added(json!({"5": 7}), json!({}), 7).unwrap_err().to_string().contains("a token"));
    }

    #[test]
    fn padding_gets_another_name_where_its_own_is_taken() {
        let (pieces, ..) = added(json!({"6": {"content": "[PAD8]"}}), json!({}), 9).unwrap();
        assert_eq!((pieces[6].0.as_str(), pieces[8].0.as_str()), ("[PAD8]", "[PAD8]_"));
    }
}
