//! The list of all sales as one text of bounded length, rendered when a sale or a sold-out flag has changed.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;

use super::{Document, Sale};

/// Longest list, bytes. One that would be longer leaves out descriptions, then the sales that opened first.
const LIST_BYTES_MAX: usize = 1 << 20;
/// Room for what stands around the sales.
const FRAME_BYTES_MAX: usize = 96;

/// The text that was rendered last.
#[derive(Debug, Default)]
pub(super) struct List {
    rendered: ArcSwapOption<Rendered>,
    /// One renders, and the others wait for that.
    rendering: Mutex<()>,
}

#[derive(Debug)]
struct Rendered {
    document: Document,
    /// The flags' version that it is at least as new as.
    flags: u64,
}

impl List {
    /// The list of `sales`, at least as new as the flags' version `flags`, which was read before.
    pub(super) fn document(&self, sales: &[Arc<Sale>], flags: u64, renders: &Counter) -> Document {
        if let Some(document) = self.held(flags) {
            return document;
        }
        let _turn = self.rendering.lock();
        if let Some(document) = self.held(flags) {
            return document;
        }
        renders.inc();
        let document = Document::new(render(sales).into());
        self.rendered.store(Some(Arc::new(Rendered { document: document.clone(), flags })));
        document
    }

    fn held(&self, flags: u64) -> Option<Document> {
        let rendered = self.rendered.load();
        rendered.as_ref().filter(|rendered| rendered.flags >= flags).map(|rendered| rendered.document.clone())
    }
}

fn render(sales: &[Arc<Sale>]) -> Vec<u8> {
    let whole: Vec<_> = sales.iter().map(|sale| sale.document().body.clone()).collect();
    if whole.iter().map(|text| text.len() + 1).sum::<usize>() <= LIST_BYTES_MAX - FRAME_BYTES_MAX {
        return framed(&whole, "");
    }
    // The sales come by their opening: the first are over first.
    let mut room = LIST_BYTES_MAX - FRAME_BYTES_MAX;
    let mut short: Vec<_> = sales
        .iter()
        .rev()
        .map(|sale| sale.short())
        .take_while(|text| {
            let left = room.checked_sub(text.len() + 1);
            room = left.unwrap_or(0);
            left.is_some()
        })
        .collect();
    short.reverse();
    let left_out = sales.len() - short.len();
    tracing::warn!(
        sales = sales.len(),
        left_out,
        "the list of sales is longer than {LIST_BYTES_MAX} bytes: it goes without descriptions, and without those that opened first"
    );
    framed(&short, &format!(",\"descriptions_left_out\":true,\"sales_left_out\":{left_out}"))
}

fn framed(sales: &[impl AsRef<[u8]>], members: &str) -> Vec<u8> {
    let length: usize = sales.iter().map(|text| text.as_ref().len() + 1).sum();
    let mut list = Vec::with_capacity(length + FRAME_BYTES_MAX);
    list.extend_from_slice(b"{\"sales\":[");
    for (at, sale) in sales.iter().enumerate() {
        if at > 0 {
            list.push(b',');
        }
        list.extend_from_slice(sale.as_ref());
    }
    list.push(b']');
    list.extend_from_slice(members.as_bytes());
    list.push(b'}');
    list
}
