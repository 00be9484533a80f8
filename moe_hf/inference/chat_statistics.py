"""The numbers of a chat: model, last answer, whole session, context, memory."""

from collections.abc import Sequence

from moe_hf.inference.chat_session import ChatSession, Reply


def statistics_rows(session: ChatSession, replies: Sequence[Reply]) -> list[tuple[str, str]]:
    """Name and value of each number, for a table.

    Args:
        session: whose model and context are described.
        replies: all answers so far; the last one is described by itself.
    """
    model = session.model
    total = model.num_parameters()
    active = model.num_active_parameters()
    rows = [("model", f"{model.name} on {model.place}")]
    if total is not None:
        share = "" if active is None else f", {active:,} active per token ({active / total:.0%})"
        rows.append(("parameters", f"{total:,}{share}"))
    limit = model.context_limit
    if replies:
        last = replies[-1]
        used = last.num_prompt_tokens + last.num_tokens
        rows += [
            ("last answer", f"{last.num_tokens} tokens in {last.seconds:.2f} s, {last.tokens_per_second:.1f} tok/s"),
            ("ended by", last.finish_reason),
            ("seed", f"{last.seed} (/set seed={last.seed} and the same question give the same answer)"),
            ("context", f"{used} tokens" if limit is None else f"{used} of {limit} tokens ({used / limit:.0%})"),
        ]
        if last.num_unseen:
            rows.append(("not seen", f"the oldest {last.num_unseen} messages"))
        tokens, seconds = sum(reply.num_tokens for reply in replies), sum(reply.seconds for reply in replies)
        rows.append(("all answers", f"{len(replies)} with {tokens} tokens in {seconds:.2f} s"))
    else:
        rows.append(("context", "no limit named" if limit is None else f"0 of {limit} tokens"))
    peak = model.peak_memory()
    if peak is not None:
        rows.append(("peak memory", f"{peak / 2**20:,.0f} MiB"))
    return rows
