//! Reads the pickle inside a PyTorch checkpoint without running it.
//!
//! A pickle is a program for a stack machine. Its instructions can look up any function of any module, and call it.
//! This reader knows only the instructions that occur in a state dict, and only the few functions below. It recognises
//! these functions but does not call them: a "call" of `_rebuild_tensor_v2` only records where a tensor's bytes are.
//! Any other function is an error that names it.
//!
//! Instructions: `Lib/pickletools.py` in CPython; what `torch.save` writes: `torch/serialization.py` and
//! `torch/_utils.py` in PyTorch.
//!
//! Nothing here recurses. Values are small handles into flat arrays. A pickle that refers to one list a million times,
//! or nests a million tuples, therefore costs only as much as its own instructions, whose number is limited.

use std::collections::{HashMap, HashSet};

use super::dtype::DType;
use super::error::shown;

/// The largest pickle that is read, in bytes. The pickles of Yi-34B's shards have about 10 kB each.
pub(super) const MAX_BYTES: u64 = 64 << 20;

/// The most values that a pickle may create; a tensor takes about 25.
const MAX_VALUES: usize = 4 << 20;

/// PyTorch's own limit on dimensions.
const MAX_DIMS: usize = 64;

/// Where a tensor's elements are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Storage<'a> {
    /// `None` for an untyped storage, which counts bytes.
    pub dtype: Option<DType>,
    /// The name of the file in the archive's `data` folder.
    pub key: &'a str,
    /// Its length in elements of `dtype`, or in bytes if there is no `dtype`.
    pub len: u64,
}

/// A tensor: a view into a storage.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct View<'a> {
    pub storage: Storage<'a>,
    pub dtype: DType,
    /// Index of the first element in the storage, in elements of `dtype`.
    pub offset: u64,
    /// Sizes, slowest dimension first.
    pub shape: Vec<u64>,
    /// Distance between neighbours along each dimension, in elements.
    pub strides: Vec<u64>,
}

/// The contents of a state dict.
#[derive(Debug, Default, PartialEq)]
pub(super) struct StateDict<'a> {
    /// Names and tensors, in the order of the file.
    pub tensors: Vec<(&'a str, View<'a>)>,
    /// Names of entries that are not tensors.
    pub others: Vec<&'a str>,
}

/// Why a pickle could not be read.
#[derive(Debug, PartialEq)]
pub(super) enum Problem {
    /// At this byte, the pickle refers to a function or class that is not known to be harmless.
    Global(usize, String),
    /// At this byte, something is wrong.
    At(usize, String),
}

/// The functions and classes that a state dict refers to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildTensorV2,
    RebuildTensorV3,
    RebuildParameter,
    RebuildParameterWithState,
    RebuildFromType,
    Size,
    Device,
    /// `torch.Tensor` or `torch.nn.Parameter`, referred to as a class.
    TensorClass,
    Storage(Option<DType>),
    DType(DType),
}

impl Global {
    fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensorV2,
            ("torch._utils", "_rebuild_tensor_v3") => Self::RebuildTensorV3,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch._utils", "_rebuild_parameter_with_state") => Self::RebuildParameterWithState,
            ("torch._tensor", "_rebuild_from_type_v2") => Self::RebuildFromType,
            ("torch", "Size") => Self::Size,
            ("torch", "device") => Self::Device,
            ("torch", "Tensor") | ("torch.nn.parameter", "Parameter") => Self::TensorClass,
            ("torch.storage" | "torch", "UntypedStorage") => Self::Storage(None),
            ("torch", "FloatStorage") => Self::Storage(Some(DType::F32)),
            ("torch", "HalfStorage") => Self::Storage(Some(DType::F16)),
            ("torch", "BFloat16Storage") => Self::Storage(Some(DType::BF16)),
            ("torch", "DoubleStorage") => Self::Storage(Some(DType::F64)),
            ("torch", "LongStorage") => Self::Storage(Some(DType::I64)),
            ("torch", "IntStorage") => Self::Storage(Some(DType::I32)),
            ("torch", "ShortStorage") => Self::Storage(Some(DType::I16)),
            ("torch", "CharStorage") => Self::Storage(Some(DType::I8)),
            ("torch", "ByteStorage") => Self::Storage(Some(DType::U8)),
            ("torch", "BoolStorage") => Self::Storage(Some(DType::Bool)),
            ("torch", "ComplexFloatStorage") => Self::Storage(DType::from_torch_name("complex64")),
            ("torch", "ComplexDoubleStorage") => Self::Storage(DType::from_torch_name("complex128")),
            ("torch", _) => Self::DType(DType::from_torch_name(name)?),
            _ => return None,
        })
    }
}

/// A value on the machine's stack: plain, or an index into one of the machine's arrays.
#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Bool,
    Int(i64),
    Str(&'a str),
    /// `items[start..start + len]`
    Tuple {
        start: u32,
        len: u32,
    },
    Dict(u32),
    Storage(u32),
    Tensor(u32),
    Global(Global),
    /// A value that a state dict may hold but that is not inspected. Holds its kind, for messages.
    Other(&'static str),
}

impl Value<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Self::Bool => "a boolean",
            Self::Int(_) => "an integer",
            Self::Str(_) => "a string",
            Self::Tuple { .. } => "a tuple",
            Self::Dict(_) => "a dict",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
            Self::Global(_) => "a function or class",
            Self::Other(kind) => kind,
        }
    }
}

type Pairs<'a> = Vec<(Value<'a>, Value<'a>)>;

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The offset of the current instruction.
    op_at: usize,
    stack: Vec<Value<'a>>,
    /// Heights of the stack at which marks were set that no instruction has used yet.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    items: Vec<Value<'a>>,
    dicts: Vec<Pairs<'a>>,
    storages: Vec<Storage<'a>>,
    views: Vec<View<'a>>,
    n_values: usize,
}

/// Reads the state dict in `bytes`, the `data.pkl` of a PyTorch archive.
///
/// # Errors
/// If the pickle is broken, too large, refers to an unknown function, or holds no state dict.
pub(super) fn read(bytes: &[u8]) -> Result<StateDict<'_>, Problem> {
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Problem::At(0, format!("a pickle of {} bytes; at most {MAX_BYTES} are read", bytes.len())));
    }
    let mut machine = Machine { bytes, ..Machine::default() };
    while !machine.step()? {}
    machine.state_dict()
}

impl<'a> Machine<'a> {
    fn fail<T>(&self, problem: impl Into<String>) -> Result<T, Problem> {
        Err(Problem::At(self.op_at, problem.into()))
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Problem> {
        let end = self.at.checked_add(n);
        let Some(taken) = end.and_then(|end| self.bytes.get(self.at..end)) else {
            let left = self.bytes.len() - self.at;
            return self.fail(format!("the pickle ends too early: wanted {n} more bytes, found {left}"));
        };
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, Problem> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, Problem> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn long_len(&mut self) -> Result<usize, Problem> {
        let len = u64::from_le_bytes(self.array()?);
        // A length that does not fit is past the end, which `take` reports.
        Ok(usize::try_from(len).unwrap_or(usize::MAX))
    }

    fn str(&mut self, len: usize) -> Result<&'a str, Problem> {
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes).or_else(|_| self.fail("a string that is not UTF-8"))
    }

    fn line(&mut self) -> Result<&'a str, Problem> {
        let rest = &self.bytes[self.at..];
        let Some(len) = rest.iter().position(|&b| b == b'\n') else {
            return self.fail("the pickle ends too early: wanted a line, found no line break");
        };
        let line = self.str(len)?;
        self.at += 1;
        Ok(line)
    }

    /// Counts the values that the pickle creates, whether they are on the stack, in the memo or in a dict.
    fn count(&mut self, n: usize) -> Result<(), Problem> {
        self.n_values += n;
        if self.n_values > MAX_VALUES {
            return self.fail(format!("the pickle makes more than {MAX_VALUES} values; no state dict does"));
        }
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), Problem> {
        self.count(1)?;
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value<'a>, Problem> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.pop() {
            Some(value) if self.stack.len() >= floor => Ok(value),
            _ => self.fail("the pickle takes a value from an empty stack"),
        }
    }

    fn top(&self) -> Result<Value<'a>, Problem> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(&value) if self.stack.len() > floor => Ok(value),
            _ => self.fail("the pickle looks at a value on an empty stack"),
        }
    }

    /// Takes all values above the last mark.
    fn pop_mark(&mut self) -> Result<Vec<Value<'a>>, Problem> {
        match self.marks.pop() {
            // Marks are heights of the stack, and `pop` does not go below the last.
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => self.fail("the pickle goes back to a mark that it has not set"),
        }
    }

    fn tuple(&mut self, values: &[Value<'a>]) -> Result<Value<'a>, Problem> {
        self.count(values.len())?;
        // `count` keeps both below 2^23.
        let start = self.items.len() as u32;
        self.items.extend_from_slice(values);
        Ok(Value::Tuple { start, len: values.len() as u32 })
    }

    fn tuple_of_last(&mut self, n: usize) -> Result<(), Problem> {
        let mut values = Vec::with_capacity(n);
        for _ in 0..n {
            values.push(self.pop()?);
        }
        values.reverse();
        let tuple = self.tuple(&values)?;
        self.push(tuple)
    }

    fn items(&self, start: u32, len: u32) -> &[Value<'a>] {
        &self.items[start as usize..(start + len) as usize]
    }

    fn new_dict(&mut self) -> Value<'a> {
        self.dicts.push(Vec::new());
        Value::Dict(self.dicts.len() as u32 - 1)
    }

    fn set_items(&mut self, values: &[Value<'a>]) -> Result<(), Problem> {
        let Value::Dict(dict) = self.top()? else {
            return self.fail(format!("wanted a dict to put items into, found {}", self.top()?.kind()));
        };
        if !values.len().is_multiple_of(2) {
            return self.fail("a dict's items do not come in pairs");
        }
        self.count(values.len())?;
        self.dicts[dict as usize].extend(values.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        Ok(())
    }

    /// Drops the items of lists: a state dict's lists hold hooks, never tensors.
    fn append(&mut self) -> Result<(), Problem> {
        match self.top()? {
            Value::Other("a list") => Ok(()),
            other => self.fail(format!("wanted a list to append to, found {}", other.kind())),
        }
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), Problem> {
        match Global::find(module, name) {
            Some(global) => self.push(Value::Global(global)),
            None => Err(Problem::Global(self.op_at, shown(&format!("{module}.{name}")))),
        }
    }

    fn remember(&mut self, slot: u32) -> Result<(), Problem> {
        let value = self.top()?;
        self.count(1)?;
        self.memo.insert(slot, value);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Result<(), Problem> {
        match self.memo.get(&slot) {
            Some(&value) => self.push(value),
            None => self.fail(format!("the pickle refers to memo {slot}, which it has not filled")),
        }
    }

    /// Executes one instruction. Returns true if it was the last.
    fn step(&mut self) -> Result<bool, Problem> {
        self.op_at = self.at;
        match self.u8()? {
            // Framing: protocol, length of the frame, end.
            0x80 => {
                let protocol = self.u8()?;
                if !(2..=5).contains(&protocol) {
                    return self.fail(format!("pickle protocol {protocol}; torch.save writes 2, and 2 to 5 are read"));
                }
            }
            0x95 => drop(self.long_len()?),
            b'.' => return Ok(true),

            // Plain values.
            b'N' => self.push(Value::Other("None"))?,
            0x88 | 0x89 => self.push(Value::Bool)?,
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()))?;
            }
            b'K' => {
                let value = self.u8()?;
                self.push(Value::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()))?;
            }
            0x8a => {
                let len = self.u8()?;
                let value = self.long(len)?;
                self.push(Value::Int(value))?;
            }
            b'G' => {
                self.take(8)?;
                self.push(Value::Other("a float"))?;
            }
            b'X' => {
                let len = self.u32()?;
                let text = self.str(len as usize)?;
                self.push(Value::Str(text))?;
            }
            0x8c => {
                let len = self.u8()?;
                let text = self.str(len.into())?;
                self.push(Value::Str(text))?;
            }
            0x8d => {
                let len = self.long_len()?;
                let text = self.str(len)?;
                self.push(Value::Str(text))?;
            }
            b'C' => {
                let len = self.u8()?;
                self.take(len.into())?;
                self.push(Value::Other("bytes"))?;
            }
            b'B' => {
                let len = self.u32()?;
                self.take(len as usize)?;
                self.push(Value::Other("bytes"))?;
            }

            // Tuples, lists, dicts.
            b'(' => {
                self.count(1)?;
                self.marks.push(self.stack.len());
            }
            b')' => self.tuple_of_last(0)?,
            0x85 => self.tuple_of_last(1)?,
            0x86 => self.tuple_of_last(2)?,
            0x87 => self.tuple_of_last(3)?,
            b't' => {
                let values = self.pop_mark()?;
                let tuple = self.tuple(&values)?;
                self.push(tuple)?;
            }
            b']' => self.push(Value::Other("a list"))?,
            b'l' => {
                self.pop_mark()?;
                self.push(Value::Other("a list"))?;
            }
            b'a' => {
                self.pop()?;
                self.append()?;
            }
            b'e' => {
                self.pop_mark()?;
                self.append()?;
            }
            b'}' => {
                let dict = self.new_dict();
                self.push(dict)?;
            }
            b'd' => {
                let values = self.pop_mark()?;
                let dict = self.new_dict();
                self.push(dict)?;
                self.set_items(&values)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let values = self.pop_mark()?;
                self.set_items(&values)?;
            }

            // The stack and the memo.
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let value = self.top()?;
                self.push(value)?;
            }
            b'q' => {
                let slot = self.u8()?;
                self.remember(slot.into())?;
            }
            b'r' => {
                let slot = self.u32()?;
                self.remember(slot)?;
            }
            0x94 => {
                let slot = self.memo.len() as u32;
                self.remember(slot)?;
            }
            b'h' => {
                let slot = self.u8()?;
                self.recall(slot.into())?;
            }
            b'j' => {
                let slot = self.u32()?;
                self.recall(slot)?;
            }

            // Functions and classes, and the objects that they make.
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.global(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Str(module), Value::Str(name)) = (module, name) else {
                    return self.fail("wanted the names of a module and a function");
                };
                self.global(module, name)?;
            }
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let made = self.call(function, arguments)?;
                self.push(made)?;
            }
            b'b' => {
                // Attributes, such as a state dict's `_metadata`, are not needed.
                self.pop()?;
                match self.top()? {
                    Value::Dict(_) | Value::Tensor(_) => {}
                    other => return self.fail(format!("wanted a dict to give attributes to, found {}", other.kind())),
                }
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.count(1)?;
                self.storages.push(storage);
                self.push(Value::Storage(self.storages.len() as u32 - 1))?;
            }

            other => {
                let name = if other.is_ascii_graphic() { format!(" ('{}')", other as char) } else { String::new() };
                return self.fail(format!("pickle instruction {other:#04x}{name}, which no state dict needs"));
            }
        }
        Ok(false)
    }

    /// A little-endian integer in two's complement of `len` bytes.
    fn long(&mut self, len: u8) -> Result<i64, Problem> {
        let bytes = self.take(len.into())?;
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        let Some(low) = wide.get_mut(..bytes.len()) else {
            return self.fail(format!("an integer of {len} bytes; at most 8 are read"));
        };
        low.copy_from_slice(bytes);
        Ok(i64::from_le_bytes(wide))
    }

    /// Returns the value that a "call" of `function` with `arguments` would create.
    fn call(&mut self, function: Value<'a>, arguments: Value<'a>) -> Result<Value<'a>, Problem> {
        let Value::Global(mut global) = function else {
            return self.fail(format!("wanted a function to call, found {}", function.kind()));
        };
        let Value::Tuple { start, len } = arguments else {
            return self.fail(format!("wanted a tuple of arguments, found {}", arguments.kind()));
        };
        let mut arguments = self.items(start, len);
        // A tensor with attributes: (function, type, arguments, attributes). One level, so that nothing can nest.
        if global == Global::RebuildFromType {
            match *arguments {
                [Value::Global(inner), _, Value::Tuple { start, len }, ..] if inner != Global::RebuildFromType => {
                    global = inner;
                    arguments = self.items(start, len);
                }
                _ => return self.fail("wanted a function, a type and arguments to rebuild a tensor from"),
            }
        }
        match (global, arguments) {
            (Global::OrderedDict, []) => Ok(self.new_dict()),
            (Global::Size, &[tuple @ Value::Tuple { .. }]) => Ok(tuple),
            (Global::Device, _) => Ok(Value::Other("a device")),
            (Global::RebuildParameter | Global::RebuildParameterWithState, &[tensor @ Value::Tensor(_), ..]) => {
                Ok(tensor)
            }
            (
                Global::RebuildTensor | Global::RebuildTensorV2,
                &[Value::Storage(storage), Value::Int(offset), shape, strides, ..],
            ) => {
                let storage = self.storages[storage as usize];
                let Some(dtype) = storage.dtype else {
                    return self.fail(format!("storage {} has no type", shown(storage.key)));
                };
                self.view(storage, dtype, offset, shape, strides)
            }
            (
                Global::RebuildTensorV3,
                &[
                    Value::Storage(storage),
                    Value::Int(offset),
                    shape,
                    strides,
                    _,
                    _,
                    Value::Global(Global::DType(dtype)),
                    ..,
                ],
            ) => self.view(self.storages[storage as usize], dtype, offset, shape, strides),
            (other, arguments) => {
                let kinds: Vec<_> = arguments.iter().take(8).map(Value::kind).collect();
                self.fail(format!("a call of {other:?} with {} arguments ({})", arguments.len(), kinds.join(", ")))
            }
        }
    }

    fn view(
        &mut self,
        storage: Storage<'a>,
        dtype: DType,
        offset: i64,
        shape: Value<'a>,
        strides: Value<'a>,
    ) -> Result<Value<'a>, Problem> {
        let shape = self.sizes(shape, "shape")?;
        let strides = self.sizes(strides, "strides")?;
        if shape.len() != strides.len() {
            return self.fail(format!("a tensor of {} dimensions with {} strides", shape.len(), strides.len()));
        }
        let Ok(offset) = u64::try_from(offset) else {
            return self.fail(format!("a tensor that begins at element {offset} of its storage"));
        };
        // Many tensors may share one tuple as their shape, but each gets a copy.
        self.count(1 + shape.len())?;
        self.views.push(View { storage, dtype, offset, shape, strides });
        Ok(Value::Tensor(self.views.len() as u32 - 1))
    }

    fn sizes(&self, value: Value<'a>, what: &str) -> Result<Vec<u64>, Problem> {
        let Value::Tuple { start, len } = value else {
            return self.fail(format!("wanted a tuple as a tensor's {what}, found {}", value.kind()));
        };
        if len as usize > MAX_DIMS {
            return self.fail(format!("a tensor of {len} dimensions; at most {MAX_DIMS} are possible"));
        }
        let size = |value: &Value| match value {
            Value::Int(n) => u64::try_from(*n).ok(),
            _ => None,
        };
        match self.items(start, len).iter().map(size).collect() {
            Some(sizes) => Ok(sizes),
            None => self.fail(format!("a tensor's {what} holds something that is not a size")),
        }
    }

    /// The storage that a persistent id names: `("storage", type, key, device, length)`.
    fn storage(&self, id: Value<'a>) -> Result<Storage<'a>, Problem> {
        let Value::Tuple { start, len } = id else {
            return self.fail(format!("wanted a tuple as a storage's id, found {}", id.kind()));
        };
        match *self.items(start, len) {
            [Value::Str("storage"), Value::Global(Global::Storage(dtype)), Value::Str(key), _, Value::Int(n)]
                if n >= 0 =>
            {
                Ok(Storage { dtype, key, len: n as u64 })
            }
            _ => self.fail("a storage's id is not of the form (\"storage\", type, key, device, length)"),
        }
    }

    fn state_dict(self) -> Result<StateDict<'a>, Problem> {
        let dict = match self.stack.last() {
            Some(&Value::Dict(dict)) => &self.dicts[dict as usize],
            other => {
                let found = other.map_or("nothing", Value::kind);
                return self.fail(format!("wanted a dict of names and tensors, found {found}"));
            }
        };
        let mut seen = HashSet::new();
        let mut state = StateDict::default();
        for (key, value) in dict {
            let &Value::Str(name) = key else {
                return self.fail(format!("wanted names as the dict's keys, found {}", key.kind()));
            };
            if !seen.insert(name) {
                return self.fail(format!("the name {} is given twice", shown(name)));
            }
            match *value {
                Value::Tensor(view) => state.tensors.push((name, self.views[view as usize].clone())),
                _ => state.others.push(name),
            }
        }
        if state.tensors.is_empty() && !state.others.is_empty() {
            let names: Vec<_> = state.others.iter().take(5).map(|name| shown(name)).collect();
            return self.fail(format!(
                "wanted a dict of names and tensors, found no tensor at its top level (keys: {}); save the model's \
                 state_dict() alone",
                names.join(", ")
            ));
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn op_str(text: &str) -> Vec<u8> {
        [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
    }

    /// A storage of 6 floats under key "0", on the stack.
    fn storage() -> Vec<u8> {
        [b"(".as_slice(), &op_str("storage"), b"ctorch\nFloatStorage\n", &op_str("0"), &op_str("cpu"), b"K\x06tQ"]
            .concat()
    }

    /// A tensor of shape [2, 3] over [`storage`], on the stack.
    fn tensor() -> Vec<u8> {
        [
            b"ctorch._utils\n_rebuild_tensor_v2\n(".as_slice(),
            &storage(),
            b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89ccollections\nOrderedDict\n)RtR",
        ]
        .concat()
    }

    fn dict_of(name: &str, value: &[u8]) -> Vec<u8> {
        [b"\x80\x02}".as_slice(), &op_str(name), value, b"s."].concat()
    }

    fn problem(bytes: &[u8]) -> String {
        match read(bytes).unwrap_err() {
            Problem::Global(_, global) => format!("global {global}"),
            Problem::At(_, problem) => problem,
        }
    }

    #[test]
    fn a_state_dict_is_names_and_views() {
        let pickle = dict_of("w", &tensor());
        let state = read(&pickle).unwrap();
        let (name, view) = &state.tensors[0];
        assert_eq!(*name, "w");
        assert_eq!(view.storage, Storage { dtype: Some(DType::F32), key: "0", len: 6 });
        assert_eq!((view.offset, view.shape.as_slice(), view.strides.as_slice()), (0, &[2, 3][..], &[3, 1][..]));
        assert_eq!(read(b"\x80\x02}.").unwrap(), StateDict::default());
    }

    #[test]
    fn a_call_of_anything_else_is_refused_by_name() {
        for (pickle, global) in [
            (b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.".as_slice(), "os.system"),
            (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", "os.system"),
            (b"\x80\x02c__builtin__\neval\n)R.", "__builtin__.eval"),
            (b"\x80\x02cbuiltins\ngetattr\n)R.", "builtins.getattr"),
            (b"\x80\x02ctorch\nload\n)R.", "torch.load"),
            (b"\x80\x02ctorch.hub\nload\n)R.", "torch.hub.load"),
            (b"\x80\x02ctorch._utils\n_rebuild_qtensor\n)R.", "torch._utils._rebuild_qtensor"),
        ] {
            assert_eq!(read(pickle).unwrap_err(), Problem::Global(pickle_global_at(pickle), global.to_string()));
        }
    }

    fn pickle_global_at(pickle: &[u8]) -> usize {
        pickle.iter().position(|&b| b == 0x93).unwrap_or(2)
    }

    #[test]
    fn known_names_are_never_called_as_functions() {
        assert!(
            problem(b"\x80\x02ctorch\nFloatStorage\n)R.").contains("a call of Storage(Some(F32)) with 0 arguments")
        );
        assert!(problem(b"\x80\x02ctorch\nbfloat16\n)R.").contains("a call of DType(BF16)"));
        assert!(problem(b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.").contains("a call of OrderedDict"));
        assert!(problem(b"\x80\x02K\x01)R.").contains("wanted a function to call, found an integer"));
    }

    #[test]
    fn instructions_outside_the_list_are_refused() {
        for op in [b'i', b'o', b'P', b'S', b'V', b'I', b'L', b'F', b'g', b'p', 0x82, 0x83, 0x84, 0x8b, 0x8f, 0x92, 0x97]
        {
            let found = problem(&[0x80, 2, op, b'1', b'\n', b'.']);
            assert!(found.contains(&format!("pickle instruction {op:#04x}")), "{op:#x}: {found}");
        }
        assert!(problem(b"\x80\x01.").contains("pickle protocol 1"));
    }

    #[test]
    fn broken_pickles_say_what_is_wrong() {
        for (pickle, wanted) in [
            (b"".as_slice(), "the pickle ends too early: wanted 1 more bytes, found 0"),
            (b"\x80", "the pickle ends too early"),
            (b"X\xff\xff\xff\xffab", "wanted 4294967295 more bytes, found 2"),
            (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffab", "the pickle ends too early"),
            (b"X\x01\0\0\0\xff.", "not UTF-8"),
            (b"cos", "found no line break"),
            (b"0.", "empty stack"),
            (b"K\x01(0.", "empty stack"),
            (b"t.", "a mark that it has not set"),
            (b"h\x05.", "memo 5, which it has not filled"),
            (b"}(K\x01u.", "do not come in pairs"),
            (b"K\x01K\x02K\x03s.", "wanted a dict to put items into, found an integer"),
            (b"}K\x01a.", "wanted a list to append to, found a dict"),
            (b"]}b.", "wanted a dict to give attributes to, found a list"),
            (b"\x8a\x09123456789.", "an integer of 9 bytes"),
            (b".", "wanted a dict of names and tensors, found nothing"),
            (b"K\x01.", "wanted a dict of names and tensors, found an integer"),
            (b"}K\x01K\x02s.", "wanted names as the dict's keys, found an integer"),
            (b"K\x01Q.", "wanted a tuple as a storage's id, found an integer"),
            (b")Q.", "a storage's id is not of the form"),
        ] {
            let found = problem(pickle);
            assert!(found.contains(wanted), "{pickle:?}: {found}");
        }
    }

    #[test]
    fn tensors_that_cannot_be_are_refused() {
        let rebuild = |rest: &[u8]| {
            problem(&dict_of("w", &[b"ctorch._utils\n_rebuild_tensor_v2\n(".as_slice(), &storage(), rest].concat()))
        };
        assert!(rebuild(b"J\xff\xff\xff\xffK\x02\x85K\x01\x85\x89}tR").contains("begins at element -1"));
        assert!(rebuild(b"K\0J\xff\xff\xff\xff\x85K\x01\x85\x89}tR").contains("not a size"));
        assert!(rebuild(b"K\0K\x02\x85)\x89}tR").contains("1 dimensions with 0 strides"));
        assert!(rebuild(b"K\0K\x02K\x01\x85\x89}tR").contains("wanted a tuple as a tensor's shape"));
        let many = [b"K\0(".as_slice(), &b"K\x01".repeat(65), b"t)\x89}tR"].concat();
        assert!(rebuild(&many).contains("a tensor of 65 dimensions"));
    }

    #[test]
    fn a_name_given_twice_is_refused_and_a_training_checkpoint_explained() {
        let twice = [b"\x80\x02}(".as_slice(), &op_str("w"), &tensor(), &op_str("w"), &tensor(), b"u."].concat();
        assert_eq!(problem(&twice), "the name w is given twice");
        let nested = dict_of("model", &dict_of("w", &tensor())[..dict_of("w", &tensor()).len() - 1]);
        assert!(problem(&nested).contains("found no tensor at its top level (keys: model)"));
    }

    #[test]
    fn nesting_and_sharing_cost_only_their_own_instructions() {
        // A tuple inside a tuple, a million deep; then each tuple holding the one before twice.
        let deep = [b"\x80\x02}X\x01\0\0\0a)".as_slice(), &b"\x85".repeat(1_000_000), b"s."].concat();
        assert!(problem(&deep).contains("found no tensor"));
        let doubling = [b"\x80\x02}X\x01\0\0\0a)".as_slice(), &b"2\x86".repeat(500_000), b"s."].concat();
        assert!(problem(&doubling).contains("found no tensor"));
        // A dict that holds itself.
        assert!(problem(b"\x80\x02}q\0X\x01\0\0\0ah\0s.").contains("found no tensor"));
    }

    #[test]
    fn a_pickle_that_makes_too_many_values_is_stopped() {
        for op in [b")".as_slice(), b"}", b"(", b"N", b"]"] {
            let found = problem(&op.repeat(MAX_VALUES + 1));
            assert!(found.contains("makes more than"), "{found}");
        }
        // Filling the memo, copying from it, and copying one shape into many tensors.
        let memo: Vec<u8> = [b"\x80\x02N".to_vec(), b"\x94".repeat(MAX_VALUES + 1)].concat();
        assert!(problem(&memo).contains("makes more than"));
        let copies: Vec<u8> = [b"\x80\x02Nq\0".to_vec(), b"h\0".repeat(MAX_VALUES + 1)].concat();
        assert!(problem(&copies).contains("makes more than"));
        let shape = [b"(".as_slice(), &b"K\x01".repeat(64), b"tq\x01q\x02"].concat();
        let call = [b"ctorch._utils\n_rebuild_tensor_v2\n(".as_slice(), &storage(), b"q\x03K\0h\x01h\x02\x89}tq\x04R0"]
            .concat();
        let again = b"ctorch._utils\n_rebuild_tensor_v2\nh\x04R0";
        let tensors = [b"\x80\x02".as_slice(), &shape, &call, &again.repeat(100_000)].concat();
        assert!(problem(&tensors).contains("makes more than"));
    }

    #[test]
    fn a_tensor_with_attributes_is_read_one_level_deep() {
        let arguments = [b"(".as_slice(), &storage(), b"K\0K\x06\x85K\x01\x85\x89}t"].concat();
        let wrapped = |function: &[u8]| {
            [b"ctorch._tensor\n_rebuild_from_type_v2\n(".as_slice(), function, b"ctorch\nTensor\n", &arguments, b"}tR"]
                .concat()
        };
        let pickle = dict_of("w", &wrapped(b"ctorch._utils\n_rebuild_tensor_v2\n"));
        assert_eq!(read(&pickle).unwrap().tensors[0].1.shape, [6]);
        let nested = dict_of("w", &wrapped(b"ctorch._tensor\n_rebuild_from_type_v2\n"));
        assert!(problem(&nested).contains("wanted a function, a type and arguments"));
    }

    #[test]
    fn an_untyped_storage_takes_the_tensors_type() {
        let storage = [
            b"(".as_slice(),
            &op_str("storage"),
            b"ctorch.storage\nUntypedStorage\n",
            &op_str("0"),
            &op_str("cpu"),
            b"K\x06tQ",
        ]
        .concat();
        let call = |function: &str, rest: &[u8]| {
            let head = format!("ctorch._utils\n{function}\n(");
            dict_of("w", &[head.as_bytes(), &storage, b"K\0K\x06\x85K\x01\x85\x89}", rest, b"tR"].concat())
        };
        let pickle = call("_rebuild_tensor_v3", b"ctorch\nfloat8_e4m3fn\n");
        assert_eq!(read(&pickle).unwrap().tensors[0].1.dtype.name(), "F8_E4M3");
        assert!(problem(&call("_rebuild_tensor_v2", b"")).contains("storage 0 has no type"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }

        #[test]
        fn no_damage_makes_the_reader_panic(damage in prop::collection::vec((0usize..400, any::<u8>()), 1..5)) {
            let mut bytes = dict_of("w", &tensor());
            for (at, value) in damage {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            let _ = read(&bytes);
        }

        #[test]
        fn no_order_of_instructions_makes_the_reader_panic(
            ops in prop::collection::vec(
                prop::sample::select(vec![
                    b"(".to_vec(), b")".to_vec(), b"}".to_vec(), b"]".to_vec(), b"t".to_vec(), b"u".to_vec(), b"s".to_vec(),
                    b"a".to_vec(), b"e".to_vec(), b"d".to_vec(), b"l".to_vec(), b"0".to_vec(), b"1".to_vec(), b"2".to_vec(),
                    b"q\0".to_vec(), b"h\0".to_vec(), b"\x94".to_vec(), b"R".to_vec(), b"b".to_vec(), b"Q".to_vec(),
                    b"\x81".to_vec(), b"\x93".to_vec(), b"\x85".to_vec(), b"\x86".to_vec(), b"\x87".to_vec(),
                    b"K\x02".to_vec(), b"N".to_vec(), op_str("storage"), op_str("w"), storage(), tensor(),
                    b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(), b"ctorch._tensor\n_rebuild_from_type_v2\n".to_vec(),
                    b"ctorch\nSize\n".to_vec(), b"ccollections\nOrderedDict\n".to_vec(),
                ]),
                0..60,
            ),
        ) {
            let mut bytes = ops.concat();
            bytes.push(b'.');
            let _ = read(&bytes);
        }
    }
}
