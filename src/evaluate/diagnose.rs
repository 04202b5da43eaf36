//! Finds the tensor that breaks a model whose logits are NaN or infinite.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use super::read::session_for;
use super::texts::Cut;
use crate::engine::{Logits, Session, SessionOptions};
use crate::llama::{Model, Node, Observer, Room};

/// Watches for the first result that has a NaN or an infinite number.
struct Watch {
    room: Room,
    found: Arc<Mutex<Option<String>>>,
}

impl Observer for Watch {
    fn wants(&mut self, _: Node<'_>) -> bool {
        true
    }

    fn sees(&mut self, node: Node<'_>) -> ControlFlow<()> {
        let Some(numbers) = self.room.read(node) else { return ControlFlow::Continue(()) };
        // Attention masks later tokens with minus infinity.
        if !numbers.iter().any(|x| x.is_nan() || *x == f32::INFINITY) {
            return ControlFlow::Continue(());
        }
        let weight = (0..2).filter_map(|i| node.source(i)).map(Node::name).find(|name| name.ends_with(".weight"));
        let found = match weight {
            Some(weight) => format!("{}, computed with {weight}", node.name()),
            None => node.name().to_string(),
        };
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        ControlFlow::Break(())
    }
}

/// Returns the first tensor with a NaN or an infinite number when the model reads this window, and the weight that it
/// is computed with. `None` if there is no such tensor, or the window cannot be read in this way.
pub fn first_broken(model: &Model, window: &[u32], cut: Cut, options: &SessionOptions) -> Option<String> {
    let found = Arc::new(Mutex::new(None));
    let watch = Watch { room: Room::default(), found: found.clone() };
    let options = session_for(options, cut, model.n_vocab());
    let mut session = Session::observed(model, &options, watch).ok()?;
    for batch in window.chunks(session.rows()) {
        if session.eval(batch, Logits::All).is_err() {
            break;
        }
    }
    drop(session);
    found.lock().unwrap_or_else(PoisonError::into_inner).take()
}
