//! Instructions written by hand, for the programs that others are measured against and for what drives them: independent
//! of our code and of any compiler's.

/// Registers: r0 result, r1–r5 arguments and scratch, r6–r9 kept over calls, r10 frame of the stack.
pub type Register = u8;

/// Widths of loads and stores (linux/bpf_common.h: BPF_W, BPF_H; linux/bpf.h: BPF_DW).
#[derive(Clone, Copy, Debug)]
pub enum Width {
    /// Bytes.
    Two = 0x08,
    /// Bytes.
    Four = 0x00,
    /// Bytes.
    Eight = 0x18,
}

/// `BPF_FUNC_map_lookup_elem` and `BPF_FUNC_redirect` of linux/bpf.h.
const MAP_LOOKUP_ELEM: i32 = 1;
/// See [`MAP_LOOKUP_ELEM`].
pub const REDIRECT: i32 = 23;

/// An action of linux/bpf.h: the frame is gone.
pub const XDP_DROP: i32 = 1;
/// An action: it goes on to the kernel.
pub const XDP_PASS: i32 = 2;
/// An action: it goes back by the interface that it came by.
pub const XDP_TX: i32 = 3;

/// A program under construction. Jumps lead to the way out alone, which `finish` adds.
#[derive(Debug, Default)]
pub struct Program {
    code: Vec<[u8; 8]>,
    jumps: Vec<usize>,
}

impl Program {
    fn add(&mut self, code: u8, to: Register, from: Register, offset: i16, immediate: i32) -> &mut Self {
        let [o0, o1] = offset.to_ne_bytes();
        let [i0, i1, i2, i3] = immediate.to_ne_bytes();
        self.code.push([code, from << 4 | to, o0, o1, i0, i1, i2, i3]);
        self
    }

    /// `to = from`
    pub fn copy(&mut self, to: Register, from: Register) -> &mut Self {
        self.add(0xbf, to, from, 0, 0)
    }

    /// `to = value`
    pub fn set(&mut self, to: Register, value: i32) -> &mut Self {
        self.add(0xb7, to, 0, 0, value)
    }

    /// `to += value`
    pub fn plus(&mut self, to: Register, value: i32) -> &mut Self {
        self.add(0x07, to, 0, 0, value)
    }

    /// `to >>= bits`
    pub fn shift_right(&mut self, to: Register, bits: i32) -> &mut Self {
        self.add(0x77, to, 0, 0, bits)
    }

    /// `to <<= bits`
    pub fn shift_left(&mut self, to: Register, bits: i32) -> &mut Self {
        self.add(0x67, to, 0, 0, bits)
    }

    /// `to += from`
    pub fn plus_register(&mut self, to: Register, from: Register) -> &mut Self {
        self.add(0x0f, to, from, 0, 0)
    }

    /// `to *= from`
    pub fn times(&mut self, to: Register, from: Register) -> &mut Self {
        self.add(0x2f, to, from, 0, 0)
    }

    /// `to &= value`
    pub fn and(&mut self, to: Register, value: i32) -> &mut Self {
        self.add(0x57, to, 0, 0, value)
    }

    /// `to |= value`
    pub fn or(&mut self, to: Register, value: i32) -> &mut Self {
        self.add(0x47, to, 0, 0, value)
    }

    /// The lower 32 bits of `to`, turned from host into network order.
    pub fn network_order(&mut self, to: Register) -> &mut Self {
        self.add(0xdc, to, 0, 0, 32)
    }

    /// `*(to + offset) = value`
    pub fn put(&mut self, width: Width, to: Register, offset: i16, value: i32) -> &mut Self {
        self.add(0x62 | width as u8, to, 0, offset, value)
    }

    /// `to = *(from + offset)`
    pub fn load(&mut self, width: Width, to: Register, from: Register, offset: i16) -> &mut Self {
        self.add(0x61 | width as u8, to, from, offset, 0)
    }

    /// `*(to + offset) = from`
    pub fn store(&mut self, width: Width, to: Register, offset: i16, from: Register) -> &mut Self {
        self.add(0x63 | width as u8, to, from, offset, 0)
    }

    /// `to = value`, all 64 bits of it
    pub fn set_wide(&mut self, to: Register, value: u64) -> &mut Self {
        self.wide(to, 0, value)
    }

    /// `to =` the map with this descriptor (source register 1: BPF_PSEUDO_MAP_FD)
    pub fn set_map(&mut self, to: Register, descriptor: i32) -> &mut Self {
        self.wide(to, 1, u64::from(descriptor.cast_unsigned()))
    }

    fn wide(&mut self, to: Register, kind: u8, value: u64) -> &mut Self {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        self.add(0x18, to, kind, 0, i32::from_le_bytes([a, b, c, d]));
        self.add(0, 0, 0, 0, i32::from_le_bytes([e, f, g, h]))
    }

    /// Calls a helper.
    pub fn call(&mut self, helper: i32) -> &mut Self {
        self.add(0x85, 0, 0, 0, helper)
    }

    /// Leaves if `left > right`.
    pub fn leave_if_above(&mut self, left: Register, right: Register) -> &mut Self {
        self.jumps.push(self.code.len());
        self.add(0x2d, left, right, 0, 0)
    }

    /// Leaves if `left != right`.
    pub fn leave_unless_same(&mut self, left: Register, right: Register) -> &mut Self {
        self.jumps.push(self.code.len());
        self.add(0x5d, left, right, 0, 0)
    }

    /// Leaves if `left == right`.
    pub fn leave_if_same(&mut self, left: Register, right: Register) -> &mut Self {
        self.jumps.push(self.code.len());
        self.add(0x1d, left, right, 0, 0)
    }

    /// Leaves if `left != value`.
    pub fn leave_unless(&mut self, left: Register, value: i32) -> &mut Self {
        self.jumps.push(self.code.len());
        self.add(0x55, left, 0, 0, value)
    }

    /// Leaves if `left == 0`.
    pub fn leave_if_null(&mut self, left: Register) -> &mut Self {
        self.jumps.push(self.code.len());
        self.add(0x15, left, 0, 0, 0)
    }

    /// r7: the frame, r8: its end. Leaves if it is shorter than `length`.
    pub fn frame_of(&mut self, length: i32) -> &mut Self {
        // xdp_md.data and xdp_md.data_end.
        self.load(Width::Four, 7, 1, 0).load(Width::Four, 8, 1, 4);
        self.copy(1, 7).plus(1, length).leave_if_above(1, 8)
    }

    /// r0: the value of the map for the key that is on the stack at −4. Leaves if there is none.
    pub fn look_up(&mut self, map: i32) -> &mut Self {
        self.set_map(1, map).copy(2, 10).plus(2, -4).call(MAP_LOOKUP_ELEM).leave_if_null(0)
    }

    /// Ends with this action.
    pub fn act(&mut self, action: i32) -> &mut Self {
        self.set(0, action).leave()
    }

    /// Ends with what is in r0.
    pub fn leave(&mut self) -> &mut Self {
        self.add(0x95, 0, 0, 0, 0)
    }

    /// Adds the way out, with its action, and gives the instructions.
    ///
    /// # Panics
    /// If they are too many to be jumped over.
    pub fn finish(&mut self, way_out: i32) -> Vec<[u8; 8]> {
        let target = self.code.len();
        self.act(way_out);
        for &from in &self.jumps {
            // A jump of 0 leads to the next instruction.
            let distance = i16::try_from(target - from - 1).expect("a short program");
            self.code[from][2..4].copy_from_slice(&distance.to_ne_bytes());
        }
        std::mem::take(&mut self.code)
    }
}
