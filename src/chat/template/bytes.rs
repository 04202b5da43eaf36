//! Python's `str.encode()`, and the methods of the bytes that it returns.
//!
//! Reference: <https://docs.python.org/3/library/stdtypes.html#bytes-methods>,
//! <https://docs.python.org/3/library/codecs.html#error-handlers>.

use minijinja::{Error, ErrorKind, Value};

use super::python::{Call, LONGEST, wrong};
use super::repr::ascii;

/// The encodings that are known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Utf8,
    Ascii,
    Latin1,
}

impl Encoding {
    /// Returns the encoding of this name, in any of the spellings that Python takes.
    fn named(name: &str) -> Result<Self, Error> {
        match name.to_lowercase().replace(['-', ' '], "_").as_str() {
            "utf_8" | "utf8" | "u8" | "utf" | "cp65001" => Ok(Self::Utf8),
            "ascii" | "us_ascii" | "646" => Ok(Self::Ascii),
            "latin_1" | "latin1" | "latin" | "iso_8859_1" | "iso8859_1" | "8859" | "cp819" | "l1" => Ok(Self::Latin1),
            _ => Err(wrong(format!("the encoding '{name}' is not known; utf-8, ascii and latin-1 are"))),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Utf8 => "utf-8",
            Self::Ascii => "ascii",
            Self::Latin1 => "latin-1",
        }
    }

    /// The first number that is no character of it.
    fn end(self) -> u32 {
        match self {
            Self::Utf8 => u32::MAX,
            Self::Ascii => 0x80,
            Self::Latin1 => 0x100,
        }
    }
}

/// The encoding and what is done about errors, the arguments of both directions.
fn arguments(call: &Call) -> Result<(Encoding, String), Error> {
    call.takes(2, &["encoding", "errors"])?;
    let encoding = call.optional_text(0, "encoding")?.map_or(Ok(Encoding::Utf8), |name| Encoding::named(&name))?;
    Ok((encoding, call.optional_text(1, "errors")?.unwrap_or_else(|| "strict".to_string())))
}

fn unknown_handler(errors: &str) -> Error {
    wrong(format!("the way '{errors}' to handle errors of an encoding is not known"))
}

/// `text.encode(encoding, errors)`
pub(super) fn encode(text: &str, call: &Call) -> Result<Value, Error> {
    let (encoding, errors) = arguments(call)?;
    let mut out = Vec::with_capacity(text.len());
    for c in text.chars() {
        let n = c as u32;
        match encoding {
            Encoding::Utf8 => out.extend(c.encode_utf8(&mut [0; 4]).bytes()),
            _ if n < encoding.end() => out.push(n as u8),
            _ => match errors.as_str() {
                "strict" => {
                    let name = encoding.name();
                    return Err(wrong(format!("'{name}' cannot encode the character '{c}'")));
                }
                "ignore" => {}
                "replace" => out.push(b'?'),
                "xmlcharrefreplace" => out.extend(format!("&#{n};").bytes()),
                "backslashreplace" => match n {
                    0..=0xFF => out.extend(format!("\\x{n:02x}").bytes()),
                    _ => out.extend(ascii(c.encode_utf8(&mut [0; 4])).bytes()),
                },
                _ => return Err(unknown_handler(&errors)),
            },
        }
        if out.len() > LONGEST {
            return Err(wrong("a text grows too long"));
        }
    }
    Ok(Value::from_bytes(out))
}

/// Calls a method of bytes.
pub(super) fn method(bytes: &[u8], method: &str, call: &Call) -> Result<Value, Error> {
    match method {
        "decode" => decode(bytes, call),
        "hex" => {
            call.takes(0, &[])?;
            Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into())
        }
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

fn decode(bytes: &[u8], call: &Call) -> Result<Value, Error> {
    let (encoding, errors) = arguments(call)?;
    if !["strict", "ignore", "replace", "backslashreplace"].contains(&errors.as_str()) {
        return Err(unknown_handler(&errors));
    }
    let mut out = String::with_capacity(bytes.len());
    let bad = |bad: &[u8], out: &mut String| -> Result<(), Error> {
        match errors.as_str() {
            "ignore" => {}
            "replace" if encoding == Encoding::Utf8 => out.push(char::REPLACEMENT_CHARACTER),
            "replace" => bad.iter().for_each(|_| out.push(char::REPLACEMENT_CHARACTER)),
            "backslashreplace" => bad.iter().for_each(|byte| out.push_str(&format!("\\x{byte:02x}"))),
            _ => {
                let (name, byte) = (encoding.name(), bad.first().copied().unwrap_or_default());
                return Err(wrong(format!("'{name}' cannot decode the byte {byte:#04x}")));
            }
        }
        Ok(())
    };
    match encoding {
        Encoding::Utf8 => {
            for chunk in bytes.utf8_chunks() {
                out.push_str(chunk.valid());
                if !chunk.invalid().is_empty() {
                    bad(chunk.invalid(), &mut out)?;
                }
            }
        }
        _ => {
            for &byte in bytes {
                if u32::from(byte) < encoding.end() {
                    out.push(char::from(byte));
                } else {
                    bad(&[byte], &mut out)?;
                }
            }
        }
    }
    Ok(out.into())
}
