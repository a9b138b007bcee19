//! The body of an answer, of which a part was read ahead.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Buf, Frame, SizeHint};

/// The body of an answer that came through an [`AuthorizationLayer`](super::AuthorizationLayer): that of the HTTP client.
pub struct AnswerBody<B: Body> {
    ahead: VecDeque<Result<Frame<B::Data>, B::Error>>,
    rest: B,
}

impl<B: Body + Unpin> AnswerBody<B> {
    pub(super) fn new(rest: B) -> Self {
        Self { ahead: VecDeque::new(), rest }
    }

    /// Reads until the end, or until there are `most` bytes. What was read is still given to whoever reads the body.
    pub(super) async fn read_ahead(&mut self, most: usize) {
        let mut bytes = 0;
        while bytes < most {
            let Some(frame) = poll_fn(|context| Pin::new(&mut self.rest).poll_frame(context)).await else { return };
            let failed = frame.is_err();
            bytes += frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Buf::remaining);
            self.ahead.push_back(frame);
            if failed {
                return;
            }
        }
    }
}

// Nothing in it is pinned but by the body itself, which is not.
impl<B: Body + Unpin> Unpin for AnswerBody<B> {}

impl<B: Body + Unpin> Body for AnswerBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.ahead.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut self.rest).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let ahead: usize = self.ahead.iter().flatten().filter_map(Frame::data_ref).map(Buf::remaining).sum();
        let (ahead, rest) = (u64::try_from(ahead).unwrap_or(u64::MAX), self.rest.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(ahead));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(ahead)) {
            hint.set_upper(upper);
        }
        hint
    }
}

impl<B: Body + Default + Unpin> Default for AnswerBody<B> {
    fn default() -> Self {
        Self::new(B::default())
    }
}

impl<B: Body + fmt::Debug> fmt::Debug for AnswerBody<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AnswerBody").field("rest", &self.rest).finish_non_exhaustive()
    }
}
