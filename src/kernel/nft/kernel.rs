//! Message types and attributes of `linux/netfilter/nf_tables.h`, under the kernel's names without their prefix. The
//! attributes (`NFTA_…`) are written here because libc has none of them.

use nix::libc;

/// What messages of nf_tables have in the upper half of their type.
pub(super) const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
pub(super) const BATCH_BEGIN: u16 = libc::NFNL_MSG_BATCH_BEGIN as u16;
pub(super) const BATCH_END: u16 = libc::NFNL_MSG_BATCH_END as u16;
pub(super) const MSG_NEWTABLE: u16 = libc::NFT_MSG_NEWTABLE as u16;
pub(super) const MSG_GETTABLE: u16 = libc::NFT_MSG_GETTABLE as u16;
pub(super) const MSG_DELTABLE: u16 = libc::NFT_MSG_DELTABLE as u16;
pub(super) const MSG_NEWCHAIN: u16 = libc::NFT_MSG_NEWCHAIN as u16;
pub(super) const MSG_GETCHAIN: u16 = libc::NFT_MSG_GETCHAIN as u16;
pub(super) const MSG_DELCHAIN: u16 = libc::NFT_MSG_DELCHAIN as u16;
pub(super) const MSG_NEWRULE: u16 = libc::NFT_MSG_NEWRULE as u16;
pub(super) const MSG_GETRULE: u16 = libc::NFT_MSG_GETRULE as u16;
pub(super) const MSG_DELRULE: u16 = libc::NFT_MSG_DELRULE as u16;
pub(super) const MSG_NEWSET: u16 = libc::NFT_MSG_NEWSET as u16;
pub(super) const MSG_GETSET: u16 = libc::NFT_MSG_GETSET as u16;
pub(super) const MSG_DELSET: u16 = libc::NFT_MSG_DELSET as u16;
pub(super) const MSG_NEWSETELEM: u16 = libc::NFT_MSG_NEWSETELEM as u16;
pub(super) const MSG_GETSETELEM: u16 = libc::NFT_MSG_GETSETELEM as u16;
pub(super) const MSG_DELSETELEM: u16 = libc::NFT_MSG_DELSETELEM as u16;
pub(super) const MSG_NEWGEN: u16 = libc::NFT_MSG_NEWGEN as u16;

pub(super) const GEN_PROC_PID: u16 = 2;
pub(super) const GEN_PROC_NAME: u16 = 3;

pub(super) const TABLE_NAME: u16 = 1;
pub(super) const TABLE_FLAGS: u16 = 2;
pub(super) const TABLE_USE: u16 = 3;
pub(super) const TABLE_F_DORMANT: u32 = 1;

pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
pub(super) const CHAIN_TYPE: u16 = 7;

pub(super) const HOOK_HOOKNUM: u16 = 1;
pub(super) const HOOK_PRIORITY: u16 = 2;
pub(super) const HOOK_DEV: u16 = 3;
pub(super) const HOOK_DEVS: u16 = 4;

pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const RULE_USERDATA: u16 = 7;

pub(super) const SET_TABLE: u16 = 1;
pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
pub(super) const SET_KEY_TYPE: u16 = 4;
pub(super) const SET_KEY_LEN: u16 = 5;
pub(super) const SET_DESC: u16 = 9;
pub(super) const SET_ID: u16 = 10;
pub(super) const SET_TIMEOUT: u16 = 11;
pub(super) const SET_USERDATA: u16 = 13;
pub(super) const SET_DESC_SIZE: u16 = 1;
pub(super) const SET_DESC_CONCAT: u16 = 2;
pub(super) const SET_FIELD_LEN: u16 = 1;
pub(super) const SET_TIMEOUT_AND_EVAL: u32 = (libc::NFT_SET_TIMEOUT | libc::NFT_SET_EVAL) as u32;
/// With the flag for concatenated ranges (Linux 5.7), which libc lacks.
pub(super) const SET_RANGES: u32 = libc::NFT_SET_INTERVAL as u32 | 0x80;
pub(super) const SET_OF_A_RULE: u32 = (libc::NFT_SET_ANONYMOUS | libc::NFT_SET_CONSTANT) as u32;
pub(super) const SET_ELEM_LIST_TABLE: u16 = 1;
pub(super) const SET_ELEM_LIST_SET: u16 = 2;
pub(super) const SET_ELEM_LIST_ELEMENTS: u16 = 3;
pub(super) const SET_ELEM_LIST_SET_ID: u16 = 4;
pub(super) const SET_ELEM_KEY: u16 = 1;
pub(super) const SET_ELEM_EXPR: u16 = 7;
pub(super) const SET_ELEM_KEY_END: u16 = 10;

pub(super) const LIST_ELEM: u16 = 1;

pub(super) const EXPR_NAME: u16 = 1;
pub(super) const EXPR_DATA: u16 = 2;

pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;

pub(super) const VERDICT_CODE: u16 = 1;
pub(super) const VERDICT_CHAIN: u16 = 2;

pub(super) const META_DREG: u16 = 1;
pub(super) const META_KEY: u16 = 2;
pub(super) const META_SREG: u16 = 3;

pub(super) const SOCKET_KEY: u16 = 1;
pub(super) const SOCKET_DREG: u16 = 2;
pub(super) const SOCKET_LEVEL: u16 = 3;
/// The cgroup of version 2 that a socket is in, at a level (Linux 5.13).
pub(super) const SOCKET_CGROUP: u32 = 3;

pub(super) const PAYLOAD_DREG: u16 = 1;
pub(super) const PAYLOAD_BASE: u16 = 2;
pub(super) const PAYLOAD_OFFSET: u16 = 3;
pub(super) const PAYLOAD_LEN: u16 = 4;

pub(super) const CMP_SREG: u16 = 1;
pub(super) const CMP_OP: u16 = 2;
pub(super) const CMP_DATA: u16 = 3;

pub(super) const BITWISE_SREG: u16 = 1;
pub(super) const BITWISE_DREG: u16 = 2;
pub(super) const BITWISE_LEN: u16 = 3;
pub(super) const BITWISE_MASK: u16 = 4;
pub(super) const BITWISE_XOR: u16 = 5;
pub(super) const BITWISE_OP: u16 = 6;

pub(super) const LOOKUP_SET: u16 = 1;
pub(super) const LOOKUP_SREG: u16 = 2;
pub(super) const LOOKUP_SET_ID: u16 = 4;
pub(super) const LOOKUP_FLAGS: u16 = 5;

pub(super) const DYNSET_SET_NAME: u16 = 1;
pub(super) const DYNSET_OP: u16 = 3;
pub(super) const DYNSET_SREG_KEY: u16 = 4;
pub(super) const DYNSET_SREG_DATA: u16 = 5;
pub(super) const DYNSET_TIMEOUT: u16 = 6;
pub(super) const DYNSET_EXPR: u16 = 7;
pub(super) const DYNSET_FLAGS: u16 = 9;
pub(super) const DYNSET_EXPRESSIONS: u16 = 10;

pub(super) const IMMEDIATE_DREG: u16 = 1;
pub(super) const IMMEDIATE_DATA: u16 = 2;

pub(super) const LIMIT_RATE: u16 = 1;
pub(super) const LIMIT_UNIT: u16 = 2;
pub(super) const LIMIT_BURST: u16 = 3;
pub(super) const LIMIT_TYPE: u16 = 4;
pub(super) const LIMIT_FLAGS: u16 = 5;

pub(super) const LOG_GROUP: u16 = 1;
pub(super) const LOG_PREFIX: u16 = 2;
pub(super) const LOG_SNAPLEN: u16 = 3;

pub(super) const COUNTER_BYTES: u16 = 1;
pub(super) const COUNTER_PACKETS: u16 = 2;
